"""The runs that lie in the output folder, finished or not, as the page shows them."""

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

MAX_LISTED = 500
"""Runs that are listed, the newest first."""
TAIL_BYTES = 1 << 16
"""Of a log's end, in which the last step is looked for."""
MAX_THUMBNAILS = 512
WORKFLOW = "workflow.json"
"""In a run's folder: ComfyUI's graph."""


def find_run(name: str) -> RunFolder:
    """The run of this name. Raises BadInput for anything that is not a folder directly inside the runs' folder."""
    folder = runs_folder() / name
    if not is_folder_name(name) or not folder.is_dir() or folder.resolve().parent != runs_folder().resolve():
        raise BadInput(f'There is no run "{name}".')
    return RunFolder(folder)


def list_runs(running: set[str]) -> list[dict[str, Any]]:
    """One line for each run, the newest first: name, base, steps, last loss, its last picture, its LoRA."""
    if not runs_folder().is_dir():
        return []
    folders = [path for path in runs_folder().iterdir() if path.name != CACHE and (path / "run.json").is_file()]
    newest = sorted(folders, key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)
    return [line for path in newest[:MAX_LISTED] if (line := _line(RunFolder(path), running)) is not None]


def run_details(name: str, running: set[str]) -> dict[str, Any]:
    """A run in the form that `live_run.LiveRun` tells it in. Raises BadInput."""
    run = find_run(name)
    line = _line(run, running)
    if line is None:
        raise BadInput(f'The run "{name}" is damaged.')
    return line | {
        "id": f"{name} {line['changed']}",
        "points": [list(point) for point in run.losses()],
        "samples": sample_entries(run),
        "checkpoints": checkpoint_steps(run.checkpoints),
        "warnings": [],
        "plan": "",
        "phase": "",
        "done": 0,
        "total": 0,
        "status": "",
        "seconds_left": None,
        "memory": None,
        "request": _json(run.path / "request.json"),
        "settings": _node_values(_json(run.path / "settings.json")),
        "workflow": _workflow(run),
    }


def save_workflow(run: RunFolder, workflow: dict[str, Any]) -> None:
    """Keep the page's graph with the run that it began, or resumed."""
    write_json(run.path / WORKFLOW, workflow)


def _workflow(run: RunFolder) -> dict[str, Any] | None:
    """The graph that the run was last queued from; None when it was not queued by a page."""
    try:
        workflow = _json(run.path / WORKFLOW)
    except (OSError, ValueError):
        return None
    return workflow if isinstance(workflow, dict) else None


def _node_values(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings as the widgets of the settings node take them."""
    path = settings.get("init_lora")
    name = next((name for name in lora_options()[1:] if find_lora(name) == Path(path)), path) if path else NO_LORA
    return settings | {"init_lora": name}


def sample_entries(run: RunFolder) -> list[dict[str, Any]]:
    """All samples that a run has drawn and still wants."""
    prompts = _prompts(run)
    return [
        sample_entry(step, index, prompts[index], file)
        for step, files in run.drawn_samples().items()
        for index, file in files.items()
        if index < len(prompts)
    ]


def sample_entry(step: int, index: int, prompt: str, file: Path) -> dict[str, Any]:
    """One sample with its control image, both as ComfyUI's /view takes them."""
    control = RunFolder(file.parent.parent).control_path(index)
    return {"step": step, "index": index, "prompt": prompt, "image": _viewable(file), "control": _viewable(control)}


def sample_file(name: str, file: str) -> Path:
    """A picture of a run. Raises BadInput for anything that is not a picture in its samples folder."""
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
    """A picture as a JPEG of at most `pixels` on a side. Raises BadInput."""
    return _thumbnail(path, path.stat().st_mtime_ns, pixels)


@lru_cache(MAX_THUMBNAILS)
def _thumbnail(path: Path, _changed: int, pixels: int) -> bytes:
    return shrunk(path.read_bytes(), pixels)


def shrunk(data: bytes, pixels: int) -> bytes:
    """An encoded picture as a JPEG of at most `pixels` on a side. Raises BadInput."""
    picture = decode_image(data)
    picture.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _line(run: RunFolder, running: set[str]) -> dict[str, Any] | None:
    """None for a folder that is damaged."""
    try:
        state, request = run.state(), _json(run.path / "request.json")
        params = request["training_params"]
        last = _last_step(run.log)
        drawn = run.drawn_samples()
        weights = state.get("weights")
        finished = state.get("finished_step") == params["steps"]
        return {
            "run": run.path.name,
            "state": "running" if run.path.name in running else "finished" if finished else "stopped",
            "base_model": request["base_model"],
            "step": last.get("step", 0),
            "steps": params["steps"],
            "loss": last.get("loss"),
            "seconds": last.get("seconds"),
            "thumbnail": next(iter(drawn[max(drawn)].values())).name if drawn else None,
            "lora": weights if weights and (output_folder() / "loras" / weights).is_file() else None,
            "changed": (run.path / "run.json").stat().st_mtime,
        }
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
