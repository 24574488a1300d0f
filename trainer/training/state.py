"""How far a training has come: its weights, optimizer, step and position in the data, saved and found again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..distributed.fsdp import full_tensors_on_main, is_sharded, shard_like
from ..distributed.processes import SingleProcess
from ..errors import RunFailed
from ..events import Checkpoint, Notice
from ..files import remove
from ..tensors import copy_values
from .batch_sampler import Position
from .checkpoint import CheckpointData, checkpoint_folders, load_checkpoint, save_checkpoint
from .optim import load_optimizer_tensors, optimizer_tensors
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .trainable import Trainable


class TrainState:
    """One training's state between two steps. Several processes hold it in equal copies, or in parts of each tensor."""

    def __init__(
        self,
        run: RunFolder,
        processes: SingleProcess,
        trainable: Trainable,
        optimizer: torch.optim.Optimizer,
        seed: int,
        keep: int,
    ) -> None:
        """`keep` is how many checkpoints are kept."""
        self.run, self.processes = run, processes
        self.trainable, self.optimizer = trainable, optimizer
        self.seed, self.keep = seed, keep
        self.step = 0
        self.position = Position(0, 0)
        self.saved_step = 0
        self.consistent = True
        """Whether the weights are those of `step`, not in the middle of an update."""
        self.sharded = any(map(is_sharded, trainable.parameters.values()))
        """Each process holds but a part of what is trained."""

    # going on

    def restore(self) -> Generator[Notice, None, Path | None]:
        """Take up the newest checkpoint that is whole, and remove damaged ones; its folder, None when there is none."""
        path, state = None, None
        if self.processes.is_main:
            path, state = yield from self._newest()
        (found, *_) = self.processes.all_gather_object(path and str(path))
        if found is None:
            self.processes.broadcast_from_main(self.trainable.parameters.values())
            return None
        if state is None:
            state = load_checkpoint(Path(found))
        if state is None:
            raise RunFailed(
                f"{found} cannot be read: all processes must have the run folder on a disk that they share."
            )
        parameters = self.trainable.parameters
        copy_values(parameters, shard_like(state.weights, parameters))
        owners = {name: parameters[name.rpartition(".")[0]] for name in state.optimizer}
        load_optimizer_tensors(self.optimizer, parameters, shard_like(state.optimizer, owners))
        self.step = self.saved_step = state.step
        self.position = state.position
        self.processes.broadcast_from_main(parameters.values())
        return Path(found)

    def _newest(self) -> Generator[Notice, None, tuple[Path | None, CheckpointData | None]]:
        for path in reversed(checkpoint_folders(self.run.checkpoints)):
            if (state := load_checkpoint(path)) is not None:
                return path, state
            remove(path)
            yield Notice(message=f"The checkpoint {path.name} is damaged and was removed; an older one is taken.")
        return None, None

    @contextmanager
    def optimizer_step(self, next_position: Position) -> Iterator[None]:
        """Around an optimizer step: the course is then one step further, its data at `next_position`."""
        self.consistent = False
        yield
        self.step, self.position = self.step + 1, next_position
        self.consistent = True

    # saving

    def save(self) -> Checkpoint:
        """Save the current step, all processes together, unless it is saved already or nothing is trained yet."""
        path = self.run.checkpoints / f"step-{self.step:06d}"
        if self.step > self.saved_step:
            state = self._state()
            if self.run.writes:
                save_checkpoint(self.run.checkpoints, state, self.keep)
            self.saved_step = self.step
        return Checkpoint(step=self.step, path=path)

    def _state(self) -> CheckpointData:
        main, parameters = self.processes.is_main, self.trainable.parameters
        return CheckpointData(
            step=self.step,
            position=self.position,
            seed=self.seed,
            weights=full_tensors_on_main(parameters, main),
            optimizer=full_tensors_on_main(optimizer_tensors(self.optimizer, parameters), main),
        )

    def resume_hint(self) -> str:
        """What to tell the person when the run has failed."""
        last = checkpoint_folders(self.run.checkpoints)
        if not last:
            return "No step was saved yet."
        return f"The last good checkpoint is {last[-1]}; the same request goes on from there."
