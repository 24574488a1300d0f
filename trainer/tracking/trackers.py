"""Which trackers a run has, and its events passing through them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from ..config.public import Parameter, run_parameters
from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..errors import BadInput, RunFailed
from ..events import Event, Notice, Sample, Started, Step, Validation
from ..training.run_folder import RunFolder
from .smoothing import SmoothedLoss

LOG_WITH = ("tensorboard", "wandb", "all")
"""Choices of the command line's option and of VARIABLE; `all` is both."""

OPTION = "--log-with"
"""Option of the command line that chooses trackers."""

VARIABLE = "EDIT_TRAINER_LOG_WITH"
"""Environment variable that chooses trackers, for ComfyUI, which has no option for it."""


class Tracker(Protocol):
    """A program that shows training runs."""

    name: str
    """Its name in messages."""

    def start(self, run: RunFolder, first_step: int, parameters: Mapping[str, Parameter]) -> None:
        """Begin or go on with a run that takes its next step after `first_step`. Raises RunFailed."""

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""

    def log_sample(self, sample: Sample) -> None:
        """Log a sample image."""

    def close(self, failed: bool) -> None:
        """End the log; `failed` by an error."""


def open_trackers(settings: RunSettings, choice: str | None = None) -> list[Tracker]:
    """Return the trackers of a run: those of the command line's option or VARIABLE, and TensorBoard where the settings
    ask for it.

    Settings, requests and workflows cannot ask for one that sends anything. Raises BadInput when a package is missing
    or nobody is logged in.
    """
    feature = f"{OPTION} {choice}" if choice else f"{VARIABLE}={os.environ.get(VARIABLE, '')}"
    chosen = choice or os.environ.get(VARIABLE) or ""
    if chosen and chosen not in LOG_WITH:
        raise BadInput(f"{feature}: it can be {', '.join(LOG_WITH)}.")
    trackers: list[Tracker] = []
    if settings.tensorboard or chosen in ("tensorboard", "all"):
        from .tensorboard_log import TensorBoardLog

        trackers.append(TensorBoardLog(feature if chosen in ("tensorboard", "all") else "The setting tensorboard"))
    if chosen in ("wandb", "all"):
        from .wandb_log import WandbLog

        trackers.append(WandbLog(feature))
    return trackers


def tracked(
    events: Generator[Event, None, None], trackers: Sequence[Tracker], request: FineTuneRequest, settings: RunSettings
) -> Generator[Event, None, None]:
    """Yield the events of a run and log them.

    A tracker that fails during the run is dropped, with a notice. Raises RunFailed when one cannot start.
    """
    log = _RunLog(trackers, request, settings)
    failed = False
    try:
        with closing(events):
            for event in events:
                yield event
                yield from log.add(event)
    except Exception:  # An error of any kind ends the log as that of a failed run, and goes on.
        failed = True
        raise
    finally:
        log.close(failed)


class _RunLog:
    """Events of one run in the words of its trackers."""

    def __init__(self, trackers: Sequence[Tracker], request: FineTuneRequest, settings: RunSettings) -> None:
        self._trackers = list(trackers)
        self._parameters = run_parameters(request, settings)
        self._smoothed = SmoothedLoss()

    def add(self, event: Event) -> Iterator[Notice]:
        """Log an event; yields a notice for each tracker that fails."""
        if not self._trackers:
            return
        if isinstance(event, Started):
            run = RunFolder(event.run_dir)
            for step, loss in run.losses():
                self._smoothed.add(step, loss)
            yield from self._each(lambda tracker: tracker.start(run, event.first_step, self._parameters))
        elif isinstance(event, Step):
            values = {
                "train/loss": event.loss,
                "train/loss_smoothed": self._smoothed.add(event.step, event.loss),
                "train/learning_rate": event.learning_rate,
                "train/grad_norm": event.grad_norm,
                "train/seconds_per_step": event.seconds,
            }
            yield from self._each(lambda tracker: tracker.log_step(event.step, values))
        elif isinstance(event, Validation):
            values = {"validation/loss": event.loss}
            yield from self._each(lambda tracker: tracker.log_step(event.step, values))
        elif isinstance(event, Sample):
            yield from self._each(lambda tracker: tracker.log_sample(event))

    def close(self, failed: bool) -> None:
        """End all logs."""
        for _ in self._each(lambda tracker: tracker.close(failed)):
            pass  # Nothing is lost for the run, which has ended.

    def _each(self, act: Callable[[Tracker], None]) -> Iterator[Notice]:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except RunFailed:
                raise
            except Exception as error:  # A log that fails, in whatever way, is no reason to lose a training.
                self._trackers.remove(tracker)
                yield Notice(message=f"{tracker.name} failed, and logs no more of this run: {error}")
