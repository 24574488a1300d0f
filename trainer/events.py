"""Events that a run yields, and RunControl, which steers it. The command line and the nodes are built on both."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

Phase = Literal["checking", "loading", "caching", "training", "validating", "sampling", "saving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The run folder exists and the first step is about to start."""

    run_dir: Path
    first_step: int
    """Completed steps: 0, or the step of the checkpoint that the run resumes from."""
    steps: int
    examples: int
    trainable_parameters: int
    resumed_from: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The memory plan is decided; nothing is loaded yet."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One unit of work is done: a file loaded, an image encoded, a micro-batch, a sampler step."""

    phase: Phase
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A warning for the user, issued once; the run continues."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step is done."""

    step: int
    """Number of the step, from 1."""
    steps: int
    loss: float
    """Mean over the step's examples, timestep weights included."""
    learning_rate: float
    grad_norm: float
    """Global norm before clipping."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The loss on the held-out rows is measured."""

    step: int
    """Optimizer steps done."""
    loss: float
    """Mean over the held-out rows at fixed noise levels, timestep weights included."""
    best: bool
    """The lowest of the run so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample image is generated and saved."""

    step: int
    index: int
    """Index into the request's samples."""
    prompt: str
    image: Image.Image
    controls: Sequence[Image.Image]
    """Its control images."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that the run can resume from is complete on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run has ended: all steps are done, or it was stopped and has saved a checkpoint."""

    step: int
    steps: int
    stopped: bool
    """True if stopped before the last step; starting the same run again resumes it."""
    weights: Path | None
    """File of the exported LoRA or transformer; None when stopped without exporting."""
    run_dir: Path
    best_weights: Path | None = None
    """File of the LoRA or transformer of the lowest held-out loss; None where none is kept."""
    ema_weights: Path | None = None
    """File of the averaged LoRA or transformer; None without an average."""
    best_ema_weights: Path | None = None
    """File of the averaged weights at the step of the lowest held-out loss."""


Event = Planned | Started | Progress | Notice | Step | Validation | Sample | Checkpoint | Finished


class RunControl:
    """Controls a running `train()` from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._export = threading.Event()
        self._sample = threading.Event()

    def stop(self) -> None:
        """Request a checkpoint after the current step, then the end of the run."""
        self._stop.set()

    def stop_and_export(self) -> None:
        """Request the end of the run as `stop` does, with samples and the exported weights of that step.

        One of several processes stops without them.
        """
        self._export.set()
        self.stop()

    def sample_now(self) -> None:
        """Request samples after the current step."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stop.is_set()

    @property
    def exporting(self) -> bool:
        """True once `stop_and_export` was called."""
        return self._export.is_set()

    def take_sample_request(self) -> bool:
        """Clear the request for samples; True if there was one."""
        requested = self._sample.is_set()
        self._sample.clear()
        return requested


T = TypeVar("T")


def drain(generator: Generator[Any, None, T]) -> T:
    """Exhaust a generator and return its return value."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value
