"""Held-out loss of a run: when it is measured, which step is the best, and when the run has stopped learning."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from ..errors import NotFinite
from ..events import Event, Notice, Validation
from .checkpoint import BestStep, checkpoint_steps, read_best, write_best
from .run_log import lowest

if TYPE_CHECKING:
    from .held_out import HeldOut
    from .setup import RunContext
    from .state import TrainState


PATIENCE = 4
"""Measurements in a row above the lowest one after which a run is said to have stopped learning. A judgement: noise
levels and noise are the same each time, so that one measurement differs little from the next by chance."""

RISEN = 1.01
"""Ratio to the lowest loss above which the last one counts as risen. A judgement: less is not worth a word."""


class HeldOutCurve:
    """Measures the held-out loss of a run as it is due, and keeps the checkpoint of the lowest."""

    def __init__(self, context: RunContext, state: TrainState, held_out: HeldOut) -> None:
        self.run, self.settings, self.steps = context.run, context.settings, context.params.steps
        self.every = context.settings.validate_every or context.params.sample_every
        self.processes = context.processes
        self.state, self.held_out = state, held_out
        losses = [(step, loss) for step, loss in self.run.validation_losses() if step <= state.step]
        self.losses: dict[int, float] = context.processes.all_gather_object(dict(losses))[0]
        """Measured losses by step."""
        self._said = False
        if held_out.examples and self.settings.keep_best:
            state.best = context.processes.all_gather_object(self._best_checkpoint())[0]

    def _best_checkpoint(self) -> BestStep | None:
        """Return the best of the checkpoints that are there: the marked one, else by the log."""
        marked, steps = read_best(self.run.checkpoints), checkpoint_steps(self.run.checkpoints)
        if marked is not None and marked.step <= self.state.step:
            return marked
        step = lowest((step, loss) for step, loss in self.losses.items() if step in steps)
        return None if step is None else BestStep(step, self.losses[step])

    def is_due(self) -> bool:
        """Tell whether the loss is still to be measured at the current step."""
        step = self.state.step
        if not self.held_out.examples or step in self.losses:
            return False
        return step % self.every == 0 or step == self.steps

    def measure(self) -> Generator[Event, None, None]:
        """Measure the loss of the current step and log it; the best checkpoint is saved before that.

        Raises NotFinite when the loss is not a finite number.
        """
        step = self.state.step
        if self.processes.world_size > 1 and step > self.state.saved_step:
            yield self.state.save()  # a launcher kills a stopped run after a grace period, which this may exceed
        loss = yield from self.held_out.loss()
        if not math.isfinite(loss):
            raise NotFinite(
                f"The held-out loss is no longer a finite number at step {step} ({loss}). Lower learning_rate, or "
                "train with precision fp32."
            )
        is_best = loss < min(self.losses.values(), default=math.inf)
        if self.settings.keep_best and step and loss < self._lowest_kept():
            if step > self.state.saved_step:
                yield self.state.save()
            self.state.best = BestStep(step, loss)
            if self.run.writes:
                write_best(self.run.checkpoints, self.state.best)
        self.run.append_log({"event": "validation", "step": step, "loss": loss, "best": is_best})
        self.losses[step] = loss
        yield Validation(step=step, loss=loss, best=is_best)
        yield from self._warn_of_rise()

    def _lowest_kept(self) -> float:
        """Return the loss of the best checkpoint, or that of the start where it is lower."""
        best = math.inf if self.state.best is None else self.state.best.loss
        return min(best, self.losses.get(0, math.inf))

    def _warn_of_rise(self) -> Iterator[Notice]:
        """Say once that the loss has been above its lowest for long."""
        best, last = lowest(self.losses.items()), max(self.losses)
        if best is None or self._said:
            return
        later = [loss for step, loss in self.losses.items() if step > best]
        if len(later) < PATIENCE or self.losses[last] < RISEN * self.losses[best]:
            return
        self._said = True
        kept = f" The checkpoint of step {best} is kept." if self.state.best and self.state.best.step == best else ""
        yield Notice(
            message=f"The held-out loss has not fallen since step {best}, where it was {self.losses[best]:.4f}; now it "
            f"is {self.losses[last]:.4f}. From there on the model memorizes its examples rather than learning from "
            f"them: stop the run, or train with more examples, a lower rank or a lower learning rate.{kept}"
        )
