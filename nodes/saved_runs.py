"""Runs in the output folder, finished or not, as the page shows them."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..trainer.data.images import decode_image
from ..trainer.errors import BadInput, DamagedFile
from ..trainer.files import read_json, write_json
from ..trainer.tracking.smoothing import SmoothedLoss
from ..trainer.training.checkpoint import checkpoint_steps, last_step
from ..trainer.training.run_folder import RunFolder
from ..trainer.training.run_log import lowest, parse_log_line
from .folders import CACHE, NO_LORA, find_lora, is_folder_name, lora_options, output_folder, runs_folder
from .params import LORA_FILES
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
    if (
        not is_folder_name(name)
        or name == CACHE
        or not folder.is_dir()
        or folder.resolve().parent != runs_folder().resolve()
    ):
        raise BadInput(f'There is no run "{name}".')
    return RunFolder(folder)


def list_runs(running: set[str]) -> list[dict[str, Any]]:
    """Summaries of all runs for JSON, the newest first. `running` has the folder names of those in progress.

    Damaged runs are left out.
    """
    if not runs_folder().is_dir():
        return []
    runs = [path for path in runs_folder().iterdir() if path.name != CACHE and is_folder_name(path.name)]
    changed = {path: _changed(RunFolder(path)) for path in runs}
    folders = [path for path, when in changed.items() if when]
    newest = sorted(folders, key=lambda path: changed[path], reverse=True)
    summaries = (_summary(RunFolder(path), running) for path in newest[:MAX_LISTED])
    return [summary.to_dict() for summary in summaries if summary is not None]


def _changed(run: RunFolder) -> float:
    """Modification time of run.json, as a POSIX timestamp; 0 when there is none."""
    try:
        return (run.path / "run.json").stat().st_mtime
    except OSError:
        return 0.0


def unfinished(name: str) -> str:
    """Say at which step a run waits to be resumed; empty for one that is finished, or is not there."""
    if not is_folder_name(name):
        return ""
    run = RunFolder(runs_folder() / name)
    try:
        step, finished = last_step(run.checkpoints), run.state().get("finished_step")
    except BadInput:
        return ""
    return f"stopped at step {step}" if step and finished != run.planned_steps() else ""


def run_details(name: str, running: set[str]) -> dict[str, Any]:
    """Summary, snapshot, request, settings and graph of one run, for JSON. Raises BadInput."""
    run = find_run(name)
    workflow = _workflow(run)
    try:
        summary, request, settings = _read_summary(run, running), _request(run), _settings(run)
    except (OSError, ValueError) as error:
        raise BadInput(f'The run "{name}" is damaged: {error}.') from None
    validation = run.validation_losses()
    snapshot = RunSnapshot(
        id=f"{name} {summary.changed}",
        run=summary.run,
        state=summary.state,
        workflow_id=workflow_id(workflow),
        step=summary.step,
        steps=summary.steps,
        seconds=summary.seconds,
        points=[list(point) for point in run.losses()],
        samples=sample_entries(run),
        checkpoints=checkpoint_steps(run.checkpoints),
        validation=[list(point) for point in validation],
        best_step=lowest(validation),
    )
    return {
        **summary.to_dict(),
        **snapshot.to_dict(),
        "request": request,
        "settings": _node_values(settings),
        "workflow": workflow,
    }


def save_workflow(run: RunFolder, workflow: dict[str, Any]) -> None:
    """Save the page's graph with the run that it started or resumed."""
    write_json(run.path / WORKFLOW, workflow)


def workflow_id(workflow: dict[str, Any] | None) -> str:
    """Id of a page's graph; empty when there is none, and for the zeros of a graph that was never given one."""
    found = (workflow or {}).get("id")
    return found if isinstance(found, str) and found.strip("0-") else ""


def _workflow(run: RunFolder) -> dict[str, Any] | None:
    """Graph that the run was last queued from; None when no page queued it."""
    try:
        workflow = read_json(run.path / WORKFLOW)
    except (OSError, DamagedFile):
        return None
    return workflow if isinstance(workflow, dict) else None


def _node_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Run settings as widget values of the settings node."""
    names = {name: _lora_name(settings[name]) for name in LORA_FILES if isinstance(settings.get(name), str)}
    return settings | names


def _lora_name(path: str) -> str:
    """Option of a LoRA menu for a file; its path where ComfyUI lists no such file."""
    if not path:
        return NO_LORA
    return next((name for name in lora_options()[1:] if find_lora(name) == Path(path)), path)


def sample_entries(run: RunFolder) -> list[dict[str, Any]]:
    """Entries of the drawn samples whose prompts the request still has."""
    try:
        samples = _request(run)["training_params"].get("samples")
    except (OSError, ValueError):
        samples = None
    prompts = [sample.get("prompt") for sample in samples or [] if isinstance(sample, dict)]
    return [
        sample_entry(step, index, prompt, file)
        for step, files in run.sample_files().items()
        for index, file in files.items()
        if index < len(prompts) and isinstance(prompt := prompts[index], str)
    ]


def sample_entry(step: int, index: int, prompt: str, file: Path) -> dict[str, Any]:
    """Entry of one sample and its control images, as parameters of ComfyUI's /view. `control` is the first one's, also
    where there is none."""
    run = RunFolder(file.parent.parent)
    return {
        "step": step,
        "index": index,
        "prompt": prompt,
        "image": _viewable(file),
        "control": _viewable(run.control_path(index)),
        "controls": [_viewable(control) for control in run.control_files(index)],
    }


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
        return _read_summary(run, running)
    except (OSError, ValueError):
        return None


def _read_summary(run: RunFolder, running: set[str]) -> RunSummary:
    """Summary of a run. Raises OSError and ValueError for a damaged folder."""
    state, request = run.state(), _request(run)
    steps = request["training_params"]["steps"]
    (last, smoothed), drawn, weights = _last_step(run.log), run.sample_files(), state.get("weights")
    return RunSummary(
        run=run.path.name,
        state="running"
        if run.path.name in running
        else "finished"
        if state.get("finished_step") == steps
        else "stopped",
        base_model=request["base_model"],
        step=last.get("step", 0),
        steps=steps,
        loss=last.get("loss"),
        seconds=last.get("seconds"),
        thumbnail=next(iter(drawn[max(drawn)].values())).name if drawn else None,
        lora=weights if weights and (output_folder() / "loras" / weights).is_file() else None,
        changed=_changed(run),
        smoothed=smoothed,
    )


def _smoothed(steps: list[dict[str, Any]]) -> float | None:
    """Smoothed loss at the last step."""
    smoothed = SmoothedLoss()
    for entry in steps:
        smoothed.add(entry["step"], entry["loss"])
    return smoothed.value


def _last_step(log: Path) -> tuple[dict[str, Any], float | None]:
    """The last step's line of a log, and the smoothed loss there; empty when there is none near its end. Cached."""
    if not log.is_file():
        return {}, None
    state = log.stat()
    return _read_last_step(log, state.st_mtime_ns, state.st_size)


@lru_cache(MAX_LISTED)
def _read_last_step(log: Path, _changed: int, size: int) -> tuple[dict[str, Any], float | None]:
    with log.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().splitlines()
    entries = (parse_log_line(text) for text in lines)
    steps = [entry for entry in entries if entry is not None and entry["event"] == "step"]
    return (steps[-1] if steps else {}), _smoothed(steps)


def _request(run: RunFolder) -> dict[str, Any]:
    """The run's request. Raises OSError, and ValueError when it lacks what the page shows."""
    request = _object(run.path / "request.json")
    params = request.get("training_params")
    if not isinstance(params, dict) or type(params.get("steps")) is not int:
        raise DamagedFile("request.json has no number of steps")
    if not isinstance(request.get("base_model"), str):
        raise DamagedFile("request.json has no base model")
    return request


def _settings(run: RunFolder) -> dict[str, Any]:
    """The run's settings. Raises OSError and ValueError."""
    return _object(run.path / "settings.json")


def _object(path: Path) -> dict[str, Any]:
    """Decode a file with a JSON object. Raises OSError and ValueError."""
    try:
        value = read_json(path)
    except DamagedFile as error:
        raise DamagedFile(f"{path.name} {error}") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path.name} is not a JSON object")
    return value


def _viewable(file: Path) -> dict[str, str]:
    folder = file.parent.relative_to(output_folder()).as_posix()
    return {"filename": file.name, "subfolder": folder, "type": "output"}
