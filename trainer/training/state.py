"""How far a training has come: its weights, optimizer, step and position in the data, saved and found again."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..distributed.fsdp import full_tensors_on_main, is_sharded, shard_like
from ..distributed.ranks import SingleProcess
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
        ranks: SingleProcess,
        trainable: Trainable,
        optimizer: torch.optim.Optimizer,
        seed: int,
        keep: int,
    ) -> None:
        """`keep` is how many checkpoints are kept."""
        self.run, self.ranks = run, ranks
        self.trainable, self.optimizer = trainable, optimizer
        self.seed, self.keep = seed, keep
        self.step = 0
        self.position = Position(0, 0)
        self.saved_step = 0
        self.consistent = True
        """Whether the weights are those of `step`: not within an update, nor while they are exchanged for others."""
        self.sharded = any(map(is_sharded, trainable.parameters.values()))
        """Each process holds but a part of what is trained."""
        self._entry: dict[str, Any] = {}
        self._saving = threading.Lock()

    # going on

    def restore(self) -> Generator[Notice, None, Path | None]:
        """Take up the newest checkpoint that is whole, and remove damaged ones; its folder, None when there is none."""
        path, state = None, None
        if self.ranks.main:
            path, state = yield from self._newest()
        (found, *_) = self.ranks.all_gather_object(path and str(path))
        if found is None:
            self.ranks.broadcast_from_main(self.trainable.parameters.values())
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
        self.ranks.broadcast_from_main(parameters.values())
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

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the model computes with the exported file's values."""
        self.consistent = False
        try:
            with self.trainable.exported_values(dtype):
                yield
        finally:
            self.consistent = True

    # saving

    def log(self, entry: dict[str, Any]) -> None:
        """Note a step in the run's log."""
        self._entry = entry
        self.run.append_log(entry)

    def save(self) -> Checkpoint:
        """Save the current step, all processes together, unless it is saved already or nothing is trained yet."""
        path = self.run.checkpoints / f"step-{self.step:06d}"
        with self._saving:
            if self.step > self.saved_step:
                if self.sharded:
                    self.ranks.all_gather_object()
                state = self._state()
                if self.run.writes:
                    save_checkpoint(self.run.checkpoints, state, self.keep)
                self.saved_step = self.step
        return Checkpoint(step=self.step, path=path)

    def _state(self) -> CheckpointData:
        main, parameters = self.ranks.main or not self.sharded, self.trainable.parameters
        return CheckpointData(
            step=self.step,
            position=self.position,
            seed=self.seed,
            weights=full_tensors_on_main(parameters, main),
            optimizer=full_tensors_on_main(optimizer_tensors(self.optimizer, parameters), main),
        )

    def save_alone(self) -> None:
        """Save the current step when other processes are lost: the first that is left does, whoever wrote before.

        Weights that are shared out cannot be saved any more; neither can those within an update.
        """
        if self.sharded or not self.ranks.saves or not self.consistent:
            return
        self.run = self.run.for_writing()
        device = next(iter(self.trainable.parameters.values())).device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream):  # not the one that may wait for the lost process for ever
            self.save()
        self.run.complete_log(self._entry)

    def resume_hint(self) -> str:
        """What to tell the person when the run has failed."""
        last = checkpoint_folders(self.run.checkpoints)
        if not last:
            return "No step was saved yet."
        return f"The last good checkpoint is {last[-1]}; the same request goes on from there."
