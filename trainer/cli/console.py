"""Events on the terminal: a progress bar, or plain lines where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ..errors import printable
from ..events import Checkpoint, Event, Finished, Notice, Planned, Progress, Sample, Started, Step, Validation

_PHASES = {
    "checking": "Checking",
    "loading": "Loading",
    "caching": "Encoding",
    "training": "Training",
    "validating": "Measuring",
    "sampling": "Sampling",
    "saving": "Saving",
}


class Pace:
    """Loss and speed, smoothed over about the last 50 and 10 steps (a judgement)."""

    def __init__(self) -> None:
        self._loss = _Mean(0.98)
        self._seconds = _Mean(0.9)
        self._last: Step | None = None

    def update(self, step: Step) -> None:
        """Add one more step."""
        self._loss.add(step.loss)
        self._seconds.add(step.seconds)
        self._last = step

    def __str__(self) -> str:
        if self._last is None:
            return ""
        seconds = self._seconds.value
        speed = f"{1 / seconds:.2f} steps/s" if 0 < seconds < 1 else f"{seconds:.2f} s/step"
        left = tqdm.format_interval(seconds * (self._last.steps - self._last.step))
        return f"loss {self._last.loss:.4f}, smoothed {self._loss.value:.4f}, {speed}, {left} left"


class _Mean:
    """Exponential moving average with bias correction, as in Adam."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)

    @property
    def value(self) -> float:
        return self._sum / self._weight


class Console:
    """Context manager that shows events: lines on stdout, and a progress bar on stderr if that is a terminal."""

    def __init__(
        self, *, quiet_seconds: float = 15.0, clock: Callable[[], float] = time.monotonic, silent: bool = False
    ) -> None:
        """Without a terminal, progress lines are at least `quiet_seconds` apart; the default is a judgement. `silent`
        shows nothing."""
        self._bar: tqdm[Any] | None = None
        self._silent = silent
        self._has_bar = sys.stderr.isatty()
        self._phase = ""
        self._pace = Pace()
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._last_line = clock()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._silent:
            return
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()
        self._last_line = self._clock()

    def show(self, event: Event) -> None:
        """Show one event."""
        if self._silent:
            return
        match event:
            case Started():
                self._start(event)
            case Step():
                self._step(event)
            case Progress(phase="training"):
                pass
            case Progress():
                self._progress(event)
            case Planned():
                self.line(f"Plan: {event.line}")
            case Notice():
                self.line(f"warning: {event.message}")
            case Validation():
                best = ", the lowest so far" if event.best and event.step else ""
                self.line(f"Held-out loss at step {event.step}: {event.loss:.4f}{best}")
            case Sample():
                self.line(f'Sample at step {event.step}: {event.path} ("{event.prompt}")')
            case Checkpoint():
                self.line(f"Checkpoint at step {event.step}: {event.path}")
            case Finished():
                self._close_bar()

    def _start(self, event: Started) -> None:
        self._pace = Pace()
        self.line(f"Run folder: {event.run_dir}")
        if event.resumed_from:
            self.line(f"Continuing from step {event.first_step} ({event.resumed_from}).")
        if event.first_step < event.steps:
            self.line(
                f"{event.examples} examples, steps {event.first_step + 1} to {event.steps}, "
                f"{event.trainable_parameters:,} trainable parameters."
            )

    def _step(self, event: Step) -> None:
        self._pace.update(event)
        is_new_phase = self._phase != "training"
        self._phase = "training"
        if self._has_bar:
            self._draw("Training", event.step, event.steps, str(self._pace))
        elif is_new_phase or event.step == event.steps or self._is_due():
            self.line(f"Step {event.step} of {event.steps}: {self._pace}")

    def _progress(self, event: Progress) -> None:
        is_new_phase = self._phase != event.phase
        self._phase = event.phase
        label = _PHASES[event.phase]
        if self._has_bar:
            self._draw(label, event.done, event.total, event.note)
        elif self._is_due() or (is_new_phase and event.phase in ("loading", "caching")):
            what = f"{label} {event.note}".strip()
            self.line(f"{what}: {event.done} of {event.total}" if event.done else f"{what} ...")

    def _is_due(self) -> bool:
        return self._clock() - self._last_line >= self._quiet_seconds

    def _draw(self, label: str, done: int, total: int, note: str) -> None:
        if self._bar is None or self._bar.desc != label or self._bar.total != total:
            self._close_bar()
            self._bar = tqdm(
                desc=label,
                total=total,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._bar.n = done
        self._bar.set_postfix_str(printable(note), refresh=False)
        self._bar.update(0)
        self._bar.refresh()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
