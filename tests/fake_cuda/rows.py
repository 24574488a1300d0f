"""Rows of the tables in docs/memory.md, trained and sampled on a fake card at full depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.settings import RunSettings
from trainer.device import ADA, CONSUMER_LIMIT
from trainer.errors import BadInput
from trainer.memory.plan import gigabytes

from .allocator import Replayed, replay
from .card import Card
from .runs import Run, fake_model, run_on

HOPPER = (9, 0)
"""Capability of the data center cards of a table, H100 and H200."""


@dataclass(frozen=True, slots=True)
class Row:
    """A card of a table."""

    family: str
    resolution: int
    gigabytes: int
    """Free memory of the card, decimal."""
    host: int
    """GB of free host memory."""

    def card(self) -> Card:
        """Return the fake card that the table assumes."""
        memory = self.gigabytes * 10**9
        return Card(capability=ADA if memory < CONSUMER_LIMIT else HOPPER, memory=memory)

    def lines(self) -> Iterator[str]:
        """Train two steps, draw a sample, and say what was planned and what it took."""
        settings = RunSettings(resolution=self.resolution, control_resolution="target")
        yield f"{self.family} {self.resolution} on {self.gigabytes} GB with {self.host} GB of host memory"
        try:
            run = run_on(self.card(), fake_model(self.family), settings, host=self.host * 10**9, sample=True)
        except BadInput as refusal:
            yield f"  refused: {refusal}"
            return
        yield f"  plan: {run.plan.line()}"
        yield from (f"  {line}" for line in _findings(run, self.card().memory))


def _findings(run: Run, free: int) -> Iterator[str]:
    reserve = run.plan.expected["driver and allocator"]
    _, *marks = replay(run.log.memory)
    planned = {phase.name: phase for phase in run.plan.phases}
    reserved = max(mark.peak_reserved for mark in marks)
    yield _line("allocated in a step", run.peak, "planned beside the reserve", run.plan.bytes - reserve)
    yield f"planned is {(run.plan.bytes - reserve) / run.peak - 1:+.1%} of allocated"
    yield _line("reserved by the allocator", reserved, "planned", run.plan.bytes)
    yield _line("planned", run.plan.bytes, "free", free)
    yield _line("refused allocations on the card", _refused(run, free), "allowed", 0)
    if run.sampling is not None:
        drawing = max(phase.peak for phase in (run.sampling, run.decoding) if phase is not None)
        yield _line("allocated in a sampling", drawing, "planned", planned["sampling"].device)
    for phase in run.plan.phases:
        yield f"planned for {phase.name}: {gigabytes(phase.device)} GB on the card, {gigabytes(phase.host)} on the host"
    yield _line("in host memory", run.hosted + run.steps[0].page_locked, "planned", planned["training"].host)


def _refused(run: Run, free: int) -> int:
    last: Replayed = replay(run.log.memory, free)[-1]
    return last.out_of_memory


def _line(name: str, found: int, of: str, limit: int) -> str:
    sizes = (f"{size:.0f}" if size < 1000 else f"{size / 1e9:.2f} GB" for size in (found, limit))
    return f"{name} {{}}, {of} {{}}{'' if found <= limit else ' TOO MUCH'}".format(*sizes)
