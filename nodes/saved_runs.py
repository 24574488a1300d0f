"""Runs in the output folder, finished or not, as the page shows them."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..trainer.data.images import decode_image
from ..trainer.errors import BadInput, RunFailed
from ..trainer.files import write_json
from ..trainer.training.checkpoint import checkpoint_steps
from ..trainer.training.run_folder import RunFolder
from .folders import CACHE, NO_LORA, find_lora, is_folder_name, lora_options, output_folder, runs_folder
from .run_snapshot import RunSnapshot, RunSummary

MAX_LISTED = 500
"""Runs in the list, the newest first; a judgement: more would make the page slow."""
TAIL_BYTES = 1 << 16
"""Bytes at the end of a log that are searched for the last step: several hundred lines of about 120 bytes."""
MAX_THUMBNAILS = 512
"""Thumbnails cached in memory, each of tens of kilobytes; a judgement."""
WORKFLOW = "workflow.json"
"""File in a run folder that holds ComfyUI's graph."""


def find_run(name: str) -> RunFolder:
    """Find a run by name. Raises BadInput for anything but a folder directly inside the runs folder."""
    folder = runs_folder() / name
    if not is_folder_name(name) or not folder.is_dir() or folder.resolve().parent != runs_folder().resolve():
        raise BadInput(f'There is no run "{name}".')
    return RunFolder(folder)


def list_runs(running: set[str]) -> list[dict[str, Any]]:
    """Summaries of all runs for JSON, the newest first. `running` has the folder names of those in progress."""
    if not runs_folder().is_dir():
        return []
    folders = [path for path in runs_folder().iterdir() if path.name != CACHE and (path / "run.json").is_file()]
    newest = sorted(folders, key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)
    summaries = (_summary(RunFolder(path), running) for path in newest[:MAX_LISTED])
    return [summary.to_dict() for summary in summaries if summary is not None]


def run_details(name: str, running: set[str]) -> dict[str, Any]:
    """Summary, snapshot, request, settings and graph of one run, for JSON. Raises BadInput."""
    run = find_run(name)
    summary = _summary(run, running)
    if summary is None:
        raise BadInput(f'The run "{name}" is damaged.')
    snapshot = RunSnapshot(
        id=f"{name} {summary.changed}",
        run=summary.run,
        state=summary.state,
        step=summary.step,
        steps=summary.steps,
        seconds=summary.seconds,
        points=[list(point) for point in run.losses()],
        samples=sample_entries(run),
        checkpoints=checkpoint_steps(run.checkpoints),
    )
    return {
        **summary.to_dict(),
        **snapshot.to_dict(),
        "request": _json(run.path / "request.json"),
        "settings": _node_values(_json(run.path / "settings.json")),
        "workflow": _workflow(run),
    }


def save_workflow(run: RunFolder, workflow: dict[str, Any]) -> None:
    """Save the page's graph with the run that it started or resumed."""
    write_json(run.path / WORKFLOW, workflow)


def _workflow(run: RunFolder) -> dict[str, Any] | None:
    """Graph that the run was last queued from; None when no page queued it."""
    try:
        workflow = _json(run.path / WORKFLOW)
    except (OSError, ValueError):
        return None
    return workflow if isinstance(workflow, dict) else None


def _node_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Run settings as widget values of the settings node."""
    path = settings.get("init_lora")
    name = next((name for name in lora_options()[1:] if find_lora(name) == Path(path)), path) if path else NO_LORA
    return settings | {"init_lora": name}


def sample_entries(run: RunFolder) -> list[dict[str, Any]]:
    """Entries of the drawn samples whose prompts the request still has."""
    prompts = _prompts(run)
    return [
        sample_entry(step, index, prompts[index], file)
        for step, files in run.sample_files().items()
        for index, file in files.items()
        if index < len(prompts)
    ]


def sample_entry(step: int, index: int, prompt: str, file: Path) -> dict[str, Any]:
    """Entry of one sample and its control image, both as parameters of ComfyUI's /view."""
    control = RunFolder(file.parent.parent).control_path(index)
    return {"step": step, "index": index, "prompt": prompt, "image": _viewable(file), "control": _viewable(control)}


def sample_file(name: str, file: str) -> Path:
    """Find a sample of a run by file name. Raises BadInput for anything but a PNG in its samples folder."""
    samples = find_run(name).samples
    path = samples / file
    if (
        not is_folder_name(file)
        or path.suffix != ".png"
        or not path.is_file()
        or path.resolve().parent != samples.resolve()
    ):
        raise BadInput(f'The run "{name}" has no picture "{file}".')
    return path


def thumbnail(path: Path, pixels: int) -> bytes:
    """JPEG of an image file, at most `pixels` on a side. Cached. Raises BadInput."""
    return _thumbnail(path, path.stat().st_mtime_ns, pixels)


@lru_cache(MAX_THUMBNAILS)
def _thumbnail(path: Path, _changed: int, pixels: int) -> bytes:
    return shrink_to_jpeg(path.read_bytes(), pixels)


def shrink_to_jpeg(data: bytes, pixels: int) -> bytes:
    """JPEG of an encoded image, at most `pixels` on a side. Raises BadInput."""
    picture = decode_image(data)
    picture.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _summary(run: RunFolder, running: set[str]) -> RunSummary | None:
    """Summary of a run; None for a damaged folder."""
    try:
        state, request = run.state(), _json(run.path / "request.json")
        params = request["training_params"]
        last = _last_step(run.log)
        drawn = run.sample_files()
        weights = state.get("weights")
        finished = state.get("finished_step") == params["steps"]
        return RunSummary(
            run=run.path.name,
            state="running" if run.path.name in running else "finished" if finished else "stopped",
            base_model=request["base_model"],
            step=last.get("step", 0),
            steps=params["steps"],
            loss=last.get("loss"),
            seconds=last.get("seconds"),
            thumbnail=next(iter(drawn[max(drawn)].values())).name if drawn else None,
            lora=weights if weights and (output_folder() / "loras" / weights).is_file() else None,
            changed=(run.path / "run.json").stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError, RunFailed):
        return None


def _last_step(log: Path) -> dict[str, Any]:
    if not log.is_file():
        return {}
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("event") == "step":
            return line
    return {}


def _prompts(run: RunFolder) -> list[str]:
    return [sample["prompt"] for sample in _json(run.path / "request.json")["training_params"]["samples"]]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _viewable(file: Path) -> dict[str, str]:
    folder = file.parent.relative_to(output_folder()).as_posix()
    return {"filename": file.name, "subfolder": folder, "type": "output"}
