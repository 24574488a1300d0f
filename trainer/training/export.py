"""Weights files of a run: at its end, and of its checkpoints, each as a run of that many steps writes it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.request import FineTuneRequest, parse_request
from ..config.settings import RunSettings, parse_settings
from ..errors import BadInput, DamagedFile, shorten
from ..events import Event, Finished, Notice, Progress
from ..files import read_json
from ..lora.adapter import portable_tensors
from ..single_file.key_mapping import marker_tensors, to_stored
from ..tensors import DTYPES, write_tensors
from .checkpoint import checkpoint_steps, load_checkpoint
from .metadata import export_metadata
from .run_folder import AVERAGED_WEIGHTS, BEST_WEIGHTS, RunFolder

if TYPE_CHECKING:
    from ..models.edit_model import EditModel
    from .setup import RunContext
    from .state import TrainState


def finish_run(context: RunContext, state: TrainState) -> Generator[Event, None, dict[str, Path]]:
    """Export the trained weights and mark the run as finished; returns what `export_run` returns."""
    run = context.run
    exported = yield from export_run(context, state)
    run.finish(state.step, exported)
    context.processes.barrier()
    yield Finished(step=state.step, steps=state.step, stopped=False, run_dir=run.path, **exported)
    return exported


def export_run(context: RunContext, state: TrainState) -> Generator[Event, None, dict[str, Path]]:
    """Export the trained weights, their average and both of the best checkpoint.

    Returns the files by field of `Finished`. A best checkpoint that is damaged is left out with a notice.
    """
    yield Progress(phase="saving", done=0, total=1)
    settings, run, model = context.settings, context.run, context.components.model
    exported = {"weights": run.weights_path(state.step)}
    metadata, dtype = export_metadata(context.request, settings, model, state.step), DTYPES[settings.save_dtype]
    takes_part = run.writes or state.sharded
    if takes_part:
        state.trainable.export(exported["weights"], dtype, metadata)
    if state.average is not None:
        exported["ema_weights"] = run.weights_path(state.step, AVERAGED_WEIGHTS)
        if takes_part:
            with state.averaged():
                state.trainable.export(exported["ema_weights"], dtype, metadata)
    if state.best is not None:
        best, fault = context.processes.all_gather_object(_export_best(run, model, state, state.best.step))[0]
        exported |= best
        if fault:
            yield Notice(message=f"The weights of the lowest held-out loss are not exported. {fault}")
    yield Progress(phase="saving", done=1, total=1)
    return exported


def _export_best(run: RunFolder, model: EditModel, state: TrainState, step: int) -> tuple[dict[str, Path], str]:
    """Export the best checkpoint, and its average if there is one. Returns the files by field of `Finished`, and why
    there are none. Does nothing in all processes but the one that writes."""
    fields = {"best_weights": BEST_WEIGHTS}
    if state.average is not None:
        fields["best_ema_weights"] = BEST_WEIGHTS + AVERAGED_WEIGHTS
    paths = {field: run.weights_path(step, kind) for field, kind in fields.items()}
    try:
        for field, path in paths.items() if run.writes else ():
            export_checkpoint(run, model, step, path, averaged=field == "best_ema_weights")
    except BadInput as error:
        return {}, str(error)
    return paths, ""


def saved_request(run: RunFolder) -> tuple[FineTuneRequest, RunSettings]:
    """Read the request and the settings that a run was started with last. Raises BadInput."""
    return parse_request(_saved(run, "request.json")), parse_settings(_saved(run, "settings.json"))


def changed_settings(run: RunFolder, request: FineTuneRequest, settings: RunSettings) -> str:
    """Say in which fields that change the training a run was started with other values; empty where in none, or nothing
    tells. Begins with a space."""
    try:
        other_request, other_settings = saved_request(run)
    except BadInput:
        return ""
    pairs = ((other_request.training_params, request.training_params), (other_settings, settings))
    changes = [
        f"{name} is {shorten(str(before))} there and {shorten(str(getattr(now, name)))} here"
        for other, now in pairs
        for name, before in other
        if other.changes_training(name) and before != getattr(now, name, before)
    ]
    return f" {'; '.join(changes)}." if changes else ""


def _saved(run: RunFolder, name: str) -> Any:
    try:
        return read_json(run.path / name)
    except FileNotFoundError:
        raise BadInput(f"{run.path} is not a run folder: it has no {name}.") from None
    except DamagedFile as error:
        raise BadInput(f"{run.path / name} {error}.") from None


def export_checkpoint(
    run: RunFolder, model: EditModel, step: int | None = None, path: Path | None = None, averaged: bool = False
) -> Path:
    """Write the LoRA or transformer of a checkpoint, None for the newest, and return its file: `path`, or that of the
    run's own weights of this step. `averaged`: its moving average instead.

    `model` is the run's base model. Raises BadInput for a checkpoint that is missing or damaged, or has no average, and
    RunFailed when the disk refuses.
    """
    request, settings = saved_request(run)
    step = existing_step(run, step)
    folder = run.checkpoints / f"step-{step:06d}"
    try:
        checkpoint = load_checkpoint(folder)
    except DamagedFile as error:
        raise BadInput(f"The checkpoint {folder} {error}; choose another step.") from None
    model = replace(model, policy=checkpoint.run.get("conditioning", model.policy))
    if averaged and not checkpoint.average:
        raise BadInput(f"The checkpoint {folder} has no averaged weights: the run was made without ema_decay.")
    weights = checkpoint.average if averaged else checkpoint.weights
    params, dtype = request.training_params, DTYPES[settings.save_dtype]
    if params.use_lora:
        tensors = portable_tensors(weights, params.lora_alpha / params.lora_rank, dtype)
    else:
        layout = model.family.layout(model.empty_transformer())
        tensors = dict(to_stored(layout, {name: tensor.to(dtype) for name, tensor in weights.items()}))
        tensors |= marker_tensors(model.family.variant.marker)
    path = path or run.weights_path(step, AVERAGED_WEIGHTS if averaged else "")
    write_tensors(path, tensors, export_metadata(request, settings, model, step))
    return path


def existing_step(run: RunFolder, step: int | None) -> int:
    """Return the step of a checkpoint, None for the newest. Raises BadInput when it is not there."""
    steps = checkpoint_steps(run.checkpoints)
    if step is None and steps:
        return steps[-1]
    if step is None or step not in steps:
        kept = f"it has those of {', '.join(map(str, steps))}" if steps else "it has none"
        wanted = "" if step is None else f" of step {step}"
        raise BadInput(f"{run.path} has no checkpoint{wanted}; {kept}.")
    return step
