"""What a run tells while it goes, and what it can be told. The command line and the nodes both live on these."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

Phase = Literal["checking", "loading", "caching", "training", "sampling", "saving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The run folder exists and what will be done is known."""

    run_dir: Path
    first_step: int
    """Steps already done: 0, or the step of the checkpoint that the run continues from."""
    steps: int
    examples: int
    trainable_parameters: int
    resumed_from: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """How the model will be held and run is decided; nothing is loaded yet."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One unit of work is done (a file loaded, an image encoded, a micro-batch, a sampler step)."""

    phase: Phase
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something the person should know, said once; the run goes on."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step is done."""

    step: int
    """1 for the first."""
    steps: int
    loss: float
    """Mean over the step's examples, the timestep weights included."""
    learning_rate: float
    grad_norm: float
    """Global norm before clipping."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample image is drawn and saved."""

    step: int
    index: int
    """Which of the request's samples, from 0."""
    prompt: str
    image: Image.Image
    control: Image.Image
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint from which the run can be continued is complete on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run has ended: all its steps are done, or it was asked to stop and has saved."""

    step: int
    steps: int
    stopped: bool
    """True: asked to stop before the last step; asking for the same run again continues it."""
    weights: Path | None
    """The exported LoRA or transformer; None when stopped."""
    run_dir: Path


Event = Planned | Started | Progress | Notice | Step | Sample | Checkpoint | Finished


class RunControl:
    """Asks of a running `train()`, from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._sample = threading.Event()

    def stop(self) -> None:
        """Save after the current step, then end."""
        self._stop.set()

    def sample_now(self) -> None:
        """Draw the samples after the current step."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def take_sample_request(self) -> bool:
        """Whether samples were asked for since the last call."""
        asked = self._sample.is_set()
        self._sample.clear()
        return asked


T = TypeVar("T")


def drain(generator: Generator[Any, None, T]) -> T:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value
