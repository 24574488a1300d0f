"""Checkpoints: everything that a run resumes from, complete or absent.

A folder `step-000200` holds the trained weights, the optimizer's state and `state.json`: step, data position, seed, the
run that it belongs to, and checksums. Everything random is drawn from generators addressed by seed, epoch and example,
so no generator state is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput, DamagedFile
from ..files import atomic_write, file_checksum, flush_to_disk, read_record, remove, temporary_beside, write_record
from ..tensors import load_tensors, save_tensors
from .batch_sampler import Position

BEST = "best.json"
"""Name of the record, beside the checkpoints, of the best of them."""

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"

AVERAGE = "ema.safetensors"
"""Name of the file that a checkpoint has where the run averages its weights."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes whose values are checked; 8-bit optimizer states are integers."""


@dataclass(frozen=True, slots=True)
class CheckpointData:
    """Training state after a number of optimizer steps."""

    step: int
    position: Position
    """Data position of the next micro-batch."""
    seed: int
    weights: Mapping[str, torch.Tensor]
    """Trained parameters by name, any shape, in the dtype they are trained in."""
    optimizer: Mapping[str, torch.Tensor]
    """Optimizer state by `<parameter name>.<state name>`, any shape and dtype."""
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Averaged parameters by name, any shape, float32; empty where the run has no average."""
    run: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the run and how it computes, as in run.json. Empty for a checkpoint of an earlier release, which
    belongs to the run.json beside it."""


def save_checkpoint(folder: Path, state: CheckpointData, keep: int, best: int | None = None) -> Path:
    """Write or replace `folder/step-<n>` and delete all but the newest `keep` and that of step `best`; returns its
    path.

    Raises RunFailed when the disk refuses; older checkpoints are then untouched.
    """
    path = folder / f"step-{state.step:06d}"
    with atomic_write(path) as temporary:
        temporary.mkdir(parents=True)
        save_tensors(temporary / WEIGHTS, state.weights)
        save_tensors(temporary / OPTIMIZER, state.optimizer)
        if state.average:
            save_tensors(temporary / AVERAGE, state.average)
        _write_state(temporary, state)
        for file in temporary.iterdir():
            flush_to_disk(file)
        _discard(path)
    for step, old in sorted(_numbered(folder))[:-keep]:
        if step != best:
            _discard(old)
    return path


@dataclass(frozen=True, slots=True)
class BestStep:
    """The step of the lowest held-out loss."""

    step: int
    loss: float


def write_best(folder: Path, best: BestStep) -> None:
    """Mark a checkpoint in `folder` as the best, atomically. Raises RunFailed."""
    write_record(folder / BEST, {"step": best.step, "loss": best.loss})


def read_best(folder: Path) -> BestStep | None:
    """Return which checkpoint in `folder` is marked as the best; None where none is, or it is no longer there."""
    try:
        record = read_record(folder / BEST)
    except (FileNotFoundError, DamagedFile, BadInput):
        return None
    step, loss = record.get("step"), record.get("loss")
    if step not in checkpoint_steps(folder) or not isinstance(loss, float):
        return None
    return BestStep(step, loss)


def _write_state(path: Path, state: CheckpointData) -> None:
    """Write state.json of the checkpoint in `path`, whose other files are complete."""
    about = {"step": state.step, "epoch": state.position.epoch, "batch": state.position.batch, "seed": state.seed}
    files = {name: file_checksum(path / name) for name in (WEIGHTS, OPTIMIZER, *([AVERAGE] if state.average else []))}
    write_record(path / STATE, about | {"run": dict(state.run), "files": files})


def _discard(path: Path) -> None:
    """Delete a checkpoint if it exists; renames it first: a kill in the middle leaves none that lacks files."""
    if path.exists():
        remove(path.replace(temporary_beside(path)))


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints, oldest first. Names that the trainer does not give are ignored."""
    return [path for _, path in sorted(_numbered(folder))]


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, in order."""
    return sorted(step for step, _ in _numbered(folder))


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 when there is none."""
    return max(checkpoint_steps(folder), default=0)


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*"):
        digits = path.name.removeprefix("step-")
        if digits.isdecimal() and path.name == f"step-{int(digits):06d}" and path.is_dir():
            yield int(digits), path


def read_state(path: Path) -> dict[str, Any]:
    """Read state.json of a checkpoint. Raises DamagedFile, and BadInput for the format of a later release."""
    try:
        state = read_record(path / STATE)
    except FileNotFoundError:
        raise DamagedFile(f"has no {STATE}") from None
    except DamagedFile as error:
        raise DamagedFile(f"has a {STATE} that {error}") from None
    numbers = [state.get(name) for name in ("step", "epoch", "batch", "seed")]
    if not all(type(number) is int and number >= 0 for number in numbers) or path.name != f"step-{state['step']:06d}":
        raise DamagedFile(f"has a {STATE} with impossible values")
    run, files = state.setdefault("run", {}), state.setdefault("files", {})
    if not all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in (run, files)):
        raise DamagedFile(f"has a {STATE} with impossible values")
    return state


def load_checkpoint(path: Path) -> CheckpointData:
    """Read and check a checkpoint.

    Raises DamagedFile, also for values that are not finite, and BadInput for the format of a later release.
    """
    state = read_state(path)
    return CheckpointData(
        step=state["step"],
        position=Position(state["epoch"], state["batch"]),
        seed=state["seed"],
        weights=_load(path / WEIGHTS, state["files"].get(WEIGHTS)),
        optimizer=_load(path / OPTIMIZER, state["files"].get(OPTIMIZER)),
        average=_load(path / AVERAGE, state["files"][AVERAGE]) if AVERAGE in state["files"] else {},
        run=state["run"],
    )


def add_checksums(path: Path, data: CheckpointData) -> None:
    """Write state.json again for a checkpoint of an earlier release: with checksums, and with its run."""
    if not read_state(path)["files"]:
        _write_state(path, data)


def _load(path: Path, checksum: str | None) -> dict[str, torch.Tensor]:
    """Load a checkpoint's tensors: any shape and dtype. Raises DamagedFile."""
    from safetensors import SafetensorError

    try:
        if checksum is not None and file_checksum(path) != checksum:
            raise DamagedFile(f"does not match the checksum of {path.name}")
        tensors = load_tensors(path)
    except FileNotFoundError:
        raise DamagedFile(f"has no {path.name}") from None
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"has a {path.name} that cannot be read ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and not torch.isfinite(tensor).all():
            raise DamagedFile(f"holds values that are not finite numbers, in {name} of {path.name}")
    return tensors
