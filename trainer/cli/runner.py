"""Runs generators of events: shows them on the terminal and stops a training at Ctrl-C."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..config.columns import Columns
from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..data.dataset import EditDataset, open_dataset
from ..data.downloads import Downloads
from ..errors import BadInput
from ..events import Event, Finished, Progress, Started, Step
from ..files import named_folder
from ..paths import path_kind
from .console import Console
from .model_options import model_file_options
from .stopping import stop_signals

if TYPE_CHECKING:
    from ..distributed.processes import SingleProcess
    from ..models.edit_model import EditModel
    from ..tracking.trackers import Tracker


Result = TypeVar("Result")


CACHE_FOLDER = "edit_trainer_cache"
"""Name of the default cache folder, beside the run folder."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The end of a run that a signal has stopped."""

    exit_code: int


def load_model(base_model: str, options: Mapping[str, Path], conditioning: str = "auto") -> EditModel:
    """Return a handle on a base model.

    `options` say where its files are (see `model_options`); `conditioning` is that of RunSettings. Raises BadInput.
    """
    from ..models.edit_model import open_model
    from ..models.model_files import ModelFiles

    _hide_library_bars()
    files = {name.removeprefix("--").replace("-", "_"): options.get(name) for name in model_file_options()}
    return open_model(
        base_model, options.get("--model"), conditioning, ModelFiles(**files, tokenizers=options.get("--comfyui"))
    )


def run_training(
    console: Console,
    request: FineTuneRequest,
    parquet: Path,
    settings: RunSettings,
    run_dir: Path,
    cache_dir: Path | None,
    model_options: Mapping[str, Path],
    command_line: Sequence[str],
    processes: SingleProcess | None = None,
    trackers: Sequence[Tracker] = (),
) -> Finished | Stopped:
    """Train and show the events; a signal stops the run.

    Says what is saved then and how to resume. `command_line` is the command to resume with; each of several
    `processes` calls this function, one of them with the `trackers`. Raises BadInput and RunFailed.
    """
    from ..distributed.processes import SingleProcess

    processes = processes or SingleProcess()
    run_dir = named_folder(run_dir)
    check_folder(run_dir)
    cache_dir = cache_dir or run_dir.parent / CACHE_FOLDER
    with stop_signals(processes.local_control, processes.is_main, processes.world_size) as stop:
        downloads = Downloads(cache_dir / "downloads")
        columns = replace(request.training_params.columns, mask=settings.mask_column)
        with processes.main_process_first():
            dataset = load_dataset(
                console,
                columns,
                parquet,
                settings.images_root,
                settings.bad_rows,
                settings.allow_no_control,
                downloads,
            )
        console.line(str(dataset.report))
        console.line(f"Loading {request.base_model} ...")
        with processes.main_process_first():
            model = load_model(request.base_model, model_options, settings.conditioning)
        from ..tracking.trackers import tracked
        from ..training.loop import train

        control = processes.local_control
        step = 0
        training = train(request, dataset, model, settings, run_dir=run_dir, cache_dir=cache_dir, processes=processes)
        training = tracked(training, trackers, request, settings)
        stop.opening = False
        with closing(training):
            for event in training:
                console.show(event)
                if isinstance(event, Started):
                    step = event.first_step
                if isinstance(event, Step):
                    step, stop.saves = event.step, True
                if isinstance(event, Finished) and not event.stopped:
                    return event
                if processes.shared_control.stopping and (processes.world_size > 1 or isinstance(event, Step)):
                    stop.cancel_end()  # what is finished is saved next, however long that takes
                at_once = control.stopping and processes.world_size == 1
                if at_once and isinstance(event, Progress) and event.phase not in ("training", "saving"):
                    break
    steps = request.training_params.steps
    stopped = f"after step {step} of {steps}, which is saved" if step else "before the first step"
    command = " run the same command again." if processes.world_size > 1 else f"\n  {_quoted(command_line)}"
    console.line(f"Stopped {stopped}. To resume:{command}")
    return Stopped(stop.exit_code)


def check_folder(folder: Path) -> None:
    """Raise BadInput when the folder cannot be created because a file has its name, or a parent's."""
    for place in (folder, *folder.parents):
        kind = path_kind(place)
        if kind in ("file", "other"):
            raise BadInput(f"--out {folder}: {place} is a file; name a folder.")
        if kind == "folder":
            return


def load_dataset(
    console: Console,
    columns: Columns,
    parquet: Path,
    images_root: str,
    bad_rows: Literal["stop", "skip"],
    allow_no_control: bool,
    downloads: Downloads | None = None,
) -> EditDataset:
    """Open and check a dataset and show the progress. Raises BadInput."""
    opening = open_dataset(
        parquet,
        columns,
        images_root=images_root,
        bad_rows=bad_rows,
        allow_no_control=allow_no_control,
        downloads=downloads,
    )
    return consume(console, opening)


def consume(console: Console, events: Generator[Event, None, Result]) -> Result:
    """Show every event of a generator and return its result."""
    while True:
        try:
            console.show(next(events))
        except StopIteration as end:
            return end.value


def edit_command(
    base_model: str, lora: Path | None, model_options: Mapping[str, Path] | None = None, images: int = 1
) -> str:
    """Return the command line that edits an image, or several together, with a LoRA."""
    command = ["python", "-m", "trainer", "edit", "--base-model", base_model]
    for name, path in (model_options or {}).items():
        command += [name, str(path)]
    command += ["--lora", str(lora)]
    for name in ("in.png", "in_2.png", "in_3.png")[:images]:
        command += ["--image", name]
    return _quoted([*command, "--prompt", "...", "--out", "out.png"])


def _hide_library_bars() -> None:
    """Hide the libraries' progress bars for reading files; those of the hub's downloads stay."""
    import diffusers.utils.logging
    import huggingface_hub.utils
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()


def _quoted(command: Sequence[str]) -> str:
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
