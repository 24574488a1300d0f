"""A training run as ComfyUI's page draws it: the keys of the page's event and of the routes for runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

RunState = Literal["running", "finished", "stopped", "failed"]


GROWING = ("points", "samples", "checkpoints", "warnings", "validation")
"""Lists that only grow. An event carries their new items alone, and under `from` the index of the first of them."""


@dataclass(kw_only=True)
class RunSnapshot:
    """State of a run, live or read from its folder. Keep the class free of ComfyUI: tests load this file alone."""

    id: str
    """Changes with every execution, so that the page drops what it drew before."""
    run: str
    """Name of the run folder."""
    state: RunState
    workflow_id: str = ""
    """Id of the workflow that started or resumed it; empty when it has none, or when no page queued it."""
    status: str = ""
    """Line of text below the chart."""
    plan: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    """Optimizer steps done, of `steps`."""
    steps: int = 0
    seconds: float | None = None
    """Mean duration of a step."""
    seconds_left: int | None = None
    memory: list[int] | None = None
    """Bytes of device memory: in use, in total. None on the CPU."""
    points: list[list[float]] = field(default_factory=list)
    """Pairs of step and loss."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Entries made by `saved_runs.sample_entry`."""
    checkpoints: list[int] = field(default_factory=list)
    """Steps of the saved checkpoints."""
    warnings: list[str] = field(default_factory=list)
    resumed_at: int | None = None
    """Step from which this execution went on; None for one that began at 0, or was read from its folder."""
    validation: list[list[float]] = field(default_factory=list)
    """Pairs of step and held-out loss."""
    best_step: int | None = None
    """Step of the lowest held-out loss; None where none was measured."""

    def lengths(self) -> dict[str, int]:
        """Length of each growing list."""
        return {name: len(getattr(self, name)) for name in GROWING}

    def to_dict(self, start: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Fields by name, for JSON. Growing lists are copied, from `start` on where it is given."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {name: values[name][start[name] if start else 0 :] for name in GROWING}


@dataclass(kw_only=True)
class LiveSnapshot(RunSnapshot):
    """State of a run that this ComfyUI process has executed."""

    node_id: str
    prompt_id: str
    note: str = ""
    """Unit of work within `phase`, such as "texts"."""

    def message(self, sent: Mapping[str, int]) -> dict[str, Any]:
        """The page's event, given the lengths of the growing lists that were sent before."""
        return self.to_dict(sent) | {"from": dict(sent)}


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A saved run in the list of runs."""

    run: str
    state: RunState
    base_model: str
    step: int
    steps: int
    loss: float | None
    """Loss of the last step in the log."""
    seconds: float | None
    """Duration of that step."""
    thumbnail: str | None
    """File name of the newest sample."""
    lora: str | None
    """File name of the exported LoRA, while ComfyUI lists it."""
    changed: float
    """Modification time of run.json, as a POSIX timestamp."""
    smoothed: float | None = None
    """Smoothed loss of the last step, as the panel shows it."""

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}
