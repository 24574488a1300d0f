"""How far a training has come: its weights, optimizer, step and position in the data, saved and found again."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..distributed.fsdp import is_sharded, shared_like, whole_on_main
from ..distributed.ranks import Ranks
from ..errors import RunFailed
from ..events import Checkpoint, Warning
from ..files import remove
from ..tensors import copy_values
from .batch_sampler import Position
from .checkpoint import TrainingState, checkpoint_folders, load_checkpoint, save_checkpoint
from .optim import load_optimizer_tensors, optimizer_tensors
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .trainable import Trainee


class Course:
    """One training's state between two steps. Several processes hold it in equal copies, or in parts of each tensor."""

    def __init__(
        self, run: RunFolder, ranks: Ranks, trainee: Trainee, optimizer: torch.optim.Optimizer, seed: int, keep: int
    ) -> None:
        """`keep` is how many checkpoints are kept."""
        self.run, self.ranks = run, ranks
        self.trainee, self.optimizer = trainee, optimizer
        self.seed, self.keep = seed, keep
        self.step = 0
        self.position = Position(0, 0)
        self.saved_step = 0
        self.consistent = True
        """Whether the weights are those of `step`: not within an update, nor while they are exchanged for others."""
        self.in_parts = any(map(is_sharded, trainee.parameters.values()))
        """Each process holds but a part of what is trained."""
        self._entry: dict[str, Any] = {}
        self._saving = threading.Lock()

    # going on

    def restore(self) -> Generator[Warning, None, Path | None]:
        """Take up the newest checkpoint that is whole, and remove damaged ones; its folder, None when there is none."""
        path, state = None, None
        if self.ranks.main:
            path, state = yield from self._newest()
        (found, *_) = self.ranks.meet(path and str(path))
        if found is None:
            self.ranks.send_from_main(self.trainee.parameters.values())
            return None
        if state is None:
            state = load_checkpoint(Path(found))
        if state is None:
            raise RunFailed(
                f"{found} cannot be read: all processes must have the run folder on a disk that they share."
            )
        parameters = self.trainee.parameters
        copy_values(parameters, shared_like(state.weights, parameters))
        owners = {name: parameters[name.rpartition(".")[0]] for name in state.optimizer}
        load_optimizer_tensors(self.optimizer, parameters, shared_like(state.optimizer, owners))
        self.step = self.saved_step = state.step
        self.position = state.position
        self.ranks.send_from_main(parameters.values())
        return Path(found)

    def _newest(self) -> Generator[Warning, None, tuple[Path | None, TrainingState | None]]:
        for path in reversed(checkpoint_folders(self.run.checkpoints)):
            if (state := load_checkpoint(path)) is not None:
                return path, state
            remove(path)
            yield Warning(message=f"The checkpoint {path.name} is damaged and was removed; an older one is taken.")
        return None, None

    @contextmanager
    def advancing(self, following: Position) -> Iterator[None]:
        """Around an optimizer step: the course is then one step further, its data at `following`."""
        self.consistent = False
        yield
        self.step, self.position = self.step + 1, following
        self.consistent = True

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the model computes with the exported file's values."""
        self.consistent = False
        try:
            with self.trainee.exported_values(dtype):
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
                if self.in_parts:
                    self.ranks.meet()
                state = self._state()
                if self.run.writes:
                    save_checkpoint(self.run.checkpoints, state, self.keep)
                self.saved_step = self.step
        return Checkpoint(step=self.step, path=path)

    def _state(self) -> TrainingState:
        main, parameters = self.ranks.main or not self.in_parts, self.trainee.parameters
        return TrainingState(
            step=self.step,
            position=self.position,
            seed=self.seed,
            weights=whole_on_main(parameters, main),
            optimizer=whole_on_main(optimizer_tensors(self.optimizer, parameters), main),
        )

    def save_alone(self) -> None:
        """Save the current step when other processes are lost: the first that is left does, whoever wrote before.

        Weights that are shared out cannot be saved any more; neither can those within an update.
        """
        if self.in_parts or not self.ranks.saves or not self.consistent:
            return
        self.run = self.run.for_writing()
        device = next(iter(self.trainee.parameters.values())).device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream):  # not the one that may wait for the lost process for ever
            self.save()
        self.run.complete_log(self._entry)

    def how_to_go_on(self) -> str:
        """What to tell the person when the run has failed."""
        last = checkpoint_folders(self.run.checkpoints)
        if not last:
            return "No step was saved yet."
        return f"The last good checkpoint is {last[-1]}; the same request goes on from there."
