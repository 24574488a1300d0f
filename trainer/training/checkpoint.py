"""Checkpoints: everything that a run resumes from, complete or absent.

A folder `step-000200` holds the trained weights, the optimizer's state and `state.json` with step, data position and
seed. Everything random is drawn from generators addressed by seed, epoch and example, so no generator state is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import TEMPORARY_PREFIX, atomic_write, flush_to_disk, remove
from ..tensors import load_tensors, save_tensors
from .batch_sampler import Position

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


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


def save_checkpoint(folder: Path, state: CheckpointData, keep: int) -> Path:
    """Write `folder/step-<n>` and delete all but the newest `keep`; returns its path.

    Raises RunFailed when the disk refuses; older checkpoints are then untouched.
    """
    path = folder / f"step-{state.step:06d}"
    if not path.is_dir():
        with atomic_write(path) as temporary:
            temporary.mkdir(parents=True)
            save_tensors(temporary / WEIGHTS, state.weights)
            save_tensors(temporary / OPTIMIZER, state.optimizer)
            about = {"step": state.step, "epoch": state.position.epoch, "batch": state.position.batch}
            (temporary / STATE).write_text(json.dumps(about | {"seed": state.seed}), encoding="utf-8")
            for file in temporary.iterdir():
                flush_to_disk(file)
    for old in checkpoint_folders(folder)[:-keep]:
        # Renamed first: a kill in the middle leaves no checkpoint that lacks files.
        remove(old.replace(old.with_name(f"{TEMPORARY_PREFIX}{old.name}")))
    return path


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), key=_step_of)


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, in order."""
    return [_step_of(path) for path in checkpoint_folders(folder)]


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 when there is none."""
    return max(map(_step_of, checkpoint_folders(folder)), default=0)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_checkpoint(path: Path) -> CheckpointData | None:
    """Read a checkpoint; None when it is damaged."""
    from safetensors import SafetensorError

    try:
        about = json.loads((path / STATE).read_text(encoding="utf-8"))
        return CheckpointData(
            step=about["step"],
            position=Position(about["epoch"], about["batch"]),
            seed=about["seed"],
            weights=load_tensors(path / WEIGHTS),
            optimizer=load_tensors(path / OPTIMIZER),
        )
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
