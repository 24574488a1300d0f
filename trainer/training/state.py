"""Training state between two optimizer steps, saved to checkpoints and restored from them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..distributed.fsdp import full_tensor, full_tensors_on_main, is_sharded, shard_like
from ..errors import DamagedFile, NotFinite, RunFailed
from ..events import Checkpoint, Notice
from ..files import remove
from ..tensors import copy_values
from .average import WeightAverage
from .batch_sampler import START, Position
from .checkpoint import BestStep, CheckpointData, add_checksums, checkpoint_folders, load_checkpoint, save_checkpoint
from .optim import fits_optimizer, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from .setup import RunContext
    from .trainable import Trainable


class TrainState:
    """Weights, optimizer, step and data position. Several processes hold equal copies, or shards of each tensor."""

    def __init__(self, context: RunContext, trainable: Trainable, optimizer: torch.optim.Optimizer) -> None:
        self.run, self.processes = context.run, context.processes
        self.identity = context.identity
        self.seed, self.keep_checkpoints = context.settings.seed, context.settings.keep_checkpoints
        self.max_grad_norm = context.settings.max_grad_norm
        self.trainable, self.optimizer = trainable, optimizer
        self.ema_decay = context.settings.ema_decay
        self.average = self._new_average()
        self.step = 0
        self.position = START
        self.saved_step = 0
        self.best: BestStep | None = None
        """Checkpoint that is kept beside the newest ones."""
        self.consistent = True
        """False in the middle of an optimizer step, and for good when it failed."""
        self.sharded = any(map(is_sharded, trainable.parameters.values()))
        """The trained tensors are sharded over the processes."""

    def _new_average(self) -> WeightAverage | None:
        return WeightAverage(self.trainable.parameters, self.ema_decay) if self.ema_decay else None

    def restore(self) -> Generator[Notice, None, Path | None]:
        """Load the newest checkpoint of this run that can be read; returns its folder, None when there is none.

        Damaged ones are removed, and those of other runs set aside. Raises RunFailed when the processes do not see the
        same run folder, and BadInput for a checkpoint of a later release.
        """
        newest: tuple[Path | None, CheckpointData | None] = (None, None)
        if self.processes.is_main:
            newest = yield from self._newest_checkpoint()
        path: Path | None = self.processes.all_gather_object(newest[0])[0]
        if path is not None:
            self._load(path, newest[1])
        self.processes.broadcast_from_main(self.trainable.parameters.values())
        return path

    def _newest_checkpoint(self) -> Generator[Notice, None, tuple[Path | None, CheckpointData | None]]:
        for path in reversed(checkpoint_folders(self.run.checkpoints)):
            try:
                data = load_checkpoint(path)
            except DamagedFile as error:
                remove(path)
                yield Notice(
                    message=f"The checkpoint {path.name} is damaged and was removed, an older one is used: it {error}."
                )
                continue
            if self._fits(data):
                add_checksums(path, replace(data, run=self.identity))
                return path, data
            aside = set_aside(path)
            yield Notice(
                message=f"The checkpoint {path.name} belongs to another run and was set aside, as {aside.name}; an "
                "older one is used."
            )
        return None, None

    def _fits(self, data: CheckpointData) -> bool:
        """Tell whether a checkpoint is of this run: by its fingerprint, and by its tensors."""
        fingerprint = self.identity["fingerprint"]
        if data.run.get("fingerprint", fingerprint) != fingerprint:
            return False
        parameters = self.trainable.parameters
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        found = {name: tensor.shape for name, tensor in data.weights.items()}
        averaged = {name: tensor.shape for name, tensor in data.average.items()}
        if averaged != (shapes if self.average else {}):
            return False
        return found == shapes and fits_optimizer(self.optimizer, parameters, data.optimizer)

    def _load(self, path: Path, data: CheckpointData | None) -> None:
        try:
            data = data or load_checkpoint(path)
        except DamagedFile:
            raise RunFailed(f"Cannot read {path}: the run folder must be on a disk that all processes share.") from None
        self._set_values(data)
        self.step = self.saved_step = data.step
        self.position = data.position

    def _set_values(self, data: CheckpointData) -> None:
        parameters = self.trainable.parameters
        copy_values(parameters, shard_like(data.weights, parameters))
        if self.average is not None:
            self.average.load(shard_like(data.average, parameters))
        owners = {name: parameters[name.rpartition(".")[0]] for name in data.optimizer}
        load_optimizer_tensors(self.optimizer, parameters, shard_like(data.optimizer, owners))

    def rebuild(self, build: Callable[[], tuple[Trainable, torch.optim.Optimizer]]) -> None:
        """Replace trained weights and optimizer by those that `build` returns, with the values of the present ones.

        The values wait in host memory, so that the present ones are free by then; the gradients are dropped. If `build`
        fails, the values become a checkpoint. For a single process.
        """
        self.optimizer.zero_grad()
        data = self._checkpoint_data()
        data = replace(
            data,
            weights=_in_host_memory(data.weights),
            optimizer=_in_host_memory(data.optimizer),
            average=_in_host_memory(data.average),
        )
        del self.trainable, self.optimizer, self.average
        try:
            self.trainable, self.optimizer = build()
        except BaseException:  # A signal or Ctrl-C while the transformer loads must not lose the values either.
            self._save(data)
            raise
        self.average = self._new_average()
        self._set_values(data)

    @contextmanager
    def _advancing(self, next_position: Position) -> Iterator[None]:
        """Context for one optimizer step; advances the step and the data position on exit."""
        self.consistent = False
        yield
        if self.average is not None:
            self.average.update(self.trainable.parameters, self.step + 1)
        self.step, self.position = self.step + 1, next_position
        self.consistent = True

    def update(self, loss: torch.Tensor, learning_rate: float, next_position: Position) -> tuple[float, float]:
        """Take an optimizer step with the gradients of a loss, a float32 scalar; clips them first.

        Returns loss and gradient norm over all processes. Raises NotFinite, and leaves the weights as they are, when
        one of them is not finite.
        """
        parameters = list(self.trainable.parameters.values())
        loss = self.processes.reduce_step(loss, parameters)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf")))
        if not torch.isfinite(loss + norm):
            self.optimizer.zero_grad()
            raise NotFinite(
                f"The loss is no longer a finite number at step {self.step + 1} (loss {loss.item()}, gradient norm "
                f"{norm.item()}). Lower learning_rate, or train with precision fp32."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._advancing(next_position):
            self.optimizer.step()
            numbers = loss.item(), norm.item()
        self.optimizer.zero_grad()
        return numbers

    def save(self) -> Checkpoint:
        """Save the current step, unless it is saved already or is step 0; collective with sharded weights."""
        if self.step > self.saved_step:
            self._save(self._checkpoint_data())
        return Checkpoint(step=self.step, path=self.run.checkpoints / f"step-{self.step:06d}")

    def _save(self, data: CheckpointData) -> None:
        if data.step > self.saved_step:
            if self.run.writes:
                save_checkpoint(self.run.checkpoints, data, self.keep_checkpoints, self.best and self.best.step)
            self.saved_step = data.step

    def _checkpoint_data(self) -> CheckpointData:
        parameters, is_main = self.trainable.parameters, self.processes.is_main
        return CheckpointData(
            step=self.step,
            position=self.position,
            seed=self.seed,
            run=self.identity,
            weights=full_tensors_on_main(parameters, is_main),
            optimizer=full_tensors_on_main(optimizer_tensors(self.optimizer, parameters), is_main),
            average=full_tensors_on_main(self.average.values, is_main) if self.average else {},
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the trained weights are the averaged ones; without an average they stay as they are."""
        return self.average.applied(self.trainable.parameters) if self.average else nullcontext()

    def resume_hint(self) -> str:
        """Return a sentence that says where a failed run resumes."""
        folders = checkpoint_folders(self.run.checkpoints)
        if not folders:
            return "No step was saved yet."
        return f"The last good checkpoint is {folders[-1]}; the same request resumes from there."


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that it is no longer taken for one; returns its new path."""
    number, aside = 1, path.with_name(f"{path.name}.other")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.other-{number}")
    return path.replace(aside)


def _in_host_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
