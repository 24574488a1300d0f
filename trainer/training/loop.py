"""The training loop, a generator of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..compiled import has_compiler
from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..distributed.processes import SingleProcess
from ..encoding.cache import DamagedEntry
from ..errors import NotFinite, RunFailed
from ..events import Event, Finished, Notice, Progress, RunControl, Started, Step
from ..lora.adapter import LoraAdapter
from ..memory.estimate import FULL_SIZE_PARAMETERS
from ..tensors import DTYPES
from .batch import Batch, idle_batch
from .dataloader import BatchLoader
from .export import export_run, finish_run
from .optim import build_optimizer, learning_rate_at
from .retry import OUT_OF_MEMORY, MemoryRetry
from .setup import RunContext, open_run
from .state import TrainState
from .step import micro_step
from .trainable import build_trainable, hand_over_base
from .validation import HeldOutCurve

if TYPE_CHECKING:
    from ..data.dataset import EditDataset
    from ..memory.edit_session import EditSession
    from ..models.edit_model import EditModel


Recovery = Callable[[], Generator[Event, None, None]]
"""A way to make the training possible again after a failure."""


COMPILING = "The first step takes up to a minute longer: functions are compiled for this GPU."


def train(
    request: FineTuneRequest,
    dataset: EditDataset,
    model: EditModel,
    settings: RunSettings,
    *,
    run_dir: Path,
    cache_dir: Path | None = None,
    control: RunControl | None = None,
    device: torch.device | None = None,
    processes: SingleProcess | None = None,
    session: EditSession | None = None,
) -> Generator[Event, None, None]:
    """Train a model and yield an event for every unit of work.

    The run can be stopped through `control` or by closing the generator; both save the last finished step. The same
    request in the same `run_dir` resumes there, and a finished one ends at once. `cache_dir` holds latents and text
    embeddings, and runs may share it; by default it is beside the run folder. Each of several `processes` calls this
    function, with the control that they bring. A `session` takes over what a LoRA was trained on, for edits with it; it
    should hold nothing during the run. Raises BadInput for mistakes in the input, RunFailed when the run
    cannot go on.
    """
    processes = processes or SingleProcess(control)
    with ExitStack() as held:
        opened = yield from open_run(
            request, dataset, model, settings, processes, held, run_dir=run_dir, cache_dir=cache_dir, device=device
        )
        if isinstance(opened, Finished):
            yield opened
            return
        training = yield from prepare(opened)
        exported = (yield from training.run_steps()) if training is not None else None
        if session is not None and training is not None and exported is not None:
            hand_over_base(training.state.trainable, training.components, session, model)
        done, steps = training.step if training is not None else 0, request.training_params.steps
        if processes.shared_control.stopping and done < steps:
            processes.barrier()
            files = exported or {"weights": None}
            yield Finished(step=done, steps=steps, stopped=True, run_dir=opened.run.path, **files)


def prepare(context: RunContext) -> Generator[Event, None, Training | None]:
    """Encode images, samples and (when cached) texts, then load the transformer and the last checkpoint.

    Returns None when stopped before the transformer is loaded.
    """
    loader = BatchLoader(context)
    yield from loader.prepare()
    if context.processes.shared_control.stopping:
        return None
    yield Progress(phase="loading", done=0, total=1, note="transformer")
    trainable = build_trainable(
        context.components, context.params, context.settings, context.init_lora, writes=context.run.writes
    )
    optimizer = build_optimizer(trainable.parameters, context.settings, context.params.learning_rate)
    yield Progress(phase="loading", done=1, total=1, note="transformer")
    if _compiles(context):
        yield Notice(message=COMPILING)
    state = TrainState(context, trainable, optimizer)
    resumed_from = yield from state.restore()
    if unreadable := context.run.cut_log(state.step):
        yield Notice(message=f"{context.run.log} had {unreadable} damaged lines, which were dropped.")
    yield Started(
        run_dir=context.run.path,
        first_step=state.step,
        steps=context.params.steps,
        examples=len(loader.examples),
        trainable_parameters=sum(p.numel() for p in trainable.parameters.values()),
        resumed_from=resumed_from,
    )
    return Training(context, loader, state)


def _compiles(context: RunContext) -> bool:
    """Tell whether the first step waits for a compiler; functions of small models are not compiled."""
    transformer = context.components.transformer()
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    return has_compiler(context.components.device.type) and parameters >= FULL_SIZE_PARAMETERS


class Training:
    """A run that is ready to step: gradient steps, samples, checkpoints and the export."""

    def __init__(self, context: RunContext, loader: BatchLoader, state: TrainState) -> None:
        self.context = context
        self.params, self.settings = context.params, context.settings
        self.components, self.processes = context.components, context.processes
        self.loader, self.state = loader, state
        self.curve = HeldOutCurve(context, state, loader.held_out)
        self._retry = MemoryRetry(context, state)

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.state.step

    def run_steps(self) -> Generator[Event, None, dict[str, Path] | None]:
        """Train from the current step to the last, or until stopped.

        Returns the exported files by field of `Finished`; None where there are none. A single process that is closed or
        interrupted on the way saves its last finished step first.
        """
        if self.processes.shared_control.stopping:
            return None
        try:
            while (recover := (yield from self._train_to_end())) is not None:
                yield from recover()
            if self.step == self.params.steps:
                return (yield from finish_run(self.context, self.state))
            exporting = self.processes.shared_control.exporting and self.step
            return (yield from export_run(self.context, self.state)) if exporting else None
        except BaseException as error:
            self._save_finished_steps(error)
            if isinstance(error, RunFailed):
                raise RunFailed(f"{error}\n{self.state.resume_hint()}") from error
            if isinstance(error, torch.OutOfMemoryError):
                raise RunFailed(f"{OUT_OF_MEMORY}\n{self.state.resume_hint()}") from error
            raise

    def _save_finished_steps(self, error: BaseException) -> None:
        """Save what a failure leaves consistent, unless the training itself went wrong. Raises RunFailed when the disk
        refuses, except where a RunFailed is the failure."""
        if isinstance(error, NotFinite) or not self.state.consistent or self.processes.world_size > 1:
            return
        with suppress(RunFailed) if isinstance(error, RunFailed) else nullcontext():
            self.state.save()

    def _train_to_end(self) -> Generator[Event, None, Recovery | None]:
        """Step, save and sample to the last step or until stopped.

        Returns what to do before the next attempt when the device ran out of memory and a smaller plan may help, or
        when an entry of the cache was damaged. Nothing of the failed step is left.
        """
        control = self.processes.shared_control
        try:
            with closing(self.loader.batches(self.state.position)) as batches:
                yield from self._measure_and_draw()
                while self.step < self.params.steps and not control.stopping:
                    yield from self._one_step(batches)
                    if self._checkpoint_due() or control.stopping:
                        yield self.state.save()
                    yield from self._measure_and_draw(control.take_sample_request())
                if self.step > self.state.saved_step:  # stopped while the last samples were drawn
                    yield self.state.save()
                if control.exporting and self.step and self.loader.samples.missing(self.step):
                    yield from self._draw_samples()
        except DamagedEntry as error:
            return partial(self.loader.make_again, error.key)
        except torch.OutOfMemoryError:
            if not self._retry.is_possible:
                raise
            return self._retry.plan_again
        return None

    def _one_step(self, batches: Iterator[Batch | Progress]) -> Generator[Event, None, None]:
        """Run one optimizer step: load its micro-batches, accumulate their gradients, update, log."""
        start = time.perf_counter()
        accumulation, steps = self.params.gradient_accumulation, self.params.steps
        micro_batches = yield from self._next_batches(batches)
        loss = torch.zeros((), device=self.components.device)
        for done, batch in enumerate(micro_batches, 1):
            loss += self._forward_backward(batch)
            yield Progress(phase="training", done=self.step * accumulation + done, total=steps * accumulation)
        learning_rate = learning_rate_at(self.step + 1, steps, self.params.learning_rate, self.settings)
        mean_loss, grad_norm = self.state.update(loss, learning_rate, micro_batches[-1].next_position)
        event = Step(
            step=self.step,
            steps=steps,
            loss=mean_loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            seconds=round(time.perf_counter() - start, 4),
        )
        self.context.run.append_log(
            {
                "event": "step",
                "step": event.step,
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "grad_norm": event.grad_norm,
                "seconds": event.seconds,
            }
        )
        yield event
        yield from self.components.notices()

    def _next_batches(self, batches: Iterator[Batch | Progress]) -> Generator[Progress, None, list[Batch]]:
        """Return the micro-batches of the next optimizer step."""
        micro_batches: list[Batch] = []
        while len(micro_batches) < self.params.gradient_accumulation:
            item = next(batches)
            if isinstance(item, Progress):
                yield item
            else:
                micro_batches.append(item)
        return micro_batches

    def _forward_backward(self, batch: Batch) -> torch.Tensor:
        """Accumulate one micro-batch's gradients; returns its share of the step's loss, a float32 scalar.

        With sharded weights every pass is collective, so all processes run as many as the one with the most.
        """
        passes = len(batch.texts)
        max_passes = max(self.processes.all_gather_object(passes)) if self.context.plan.sharded else passes
        guidance = self.settings.training_guidance
        loss = micro_step(self.components, batch, batch.step_examples, guidance)
        if passes < max_passes:
            loss += micro_step(self.components, idle_batch(batch, max_passes - passes), 1, guidance)
        return loss

    def _checkpoint_due(self) -> bool:
        every = self.settings.checkpoint_every or self.params.sample_every
        return self.step % every == 0 or self.step == self.params.steps

    def _sampling_due(self) -> bool:
        if self.step % self.params.sample_every and self.step != self.params.steps:
            return False
        return self.loader.samples.missing(self.step)

    def _measure_and_draw(self, requested: bool = False) -> Generator[Event, None, None]:
        """Measure the held-out loss and draw the samples, each if it is due; samples also when `requested`."""
        if self.curve.is_due() and not self.processes.shared_control.stopping:
            yield from self.curve.measure()
        if requested or self._sampling_due():
            yield from self._draw_samples()

    def _draw_samples(self) -> Generator[Event, None, None]:
        """Draw the samples of this step with the values that an export would have."""
        if self.processes.world_size > 1 and self.step > self.state.saved_step:
            yield self.state.save()  # a launcher kills a stopped run after a grace period, which drawing may exceed
        averaged = self.state.averaged() if self.settings.sample_ema else nullcontext()
        trainable, dtype = self.state.trainable, DTYPES[self.settings.save_dtype]
        elsewhere = self.context.sample_base is not None
        with averaged:
            lora = trainable.exported(dtype) if elsewhere and isinstance(trainable, LoraAdapter) else None
            with trainable.exported_values(dtype):
                yield from self.loader.samples.draw(self.step, lora)
