"""Rows of the tables in docs/memory.md, trained and sampled on a fake card at full depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.request import RequestParams
from trainer.config.settings import RunSettings
from trainer.device import ADA, CONSUMER_LIMIT
from trainer.errors import BadInput
from trainer.memory.plan import Plan, gigabytes
from trainer.memory.planner import make_plan

from .allocator import ExpandableAllocator, replay
from .card import Card
from .runs import PARAMS, Run, device_info, fake_model, run_plan

HOPPER = (9, 0)
"""Capability of the data center cards of a table, H100 and H200."""

BESIDE = 1_300_000_000
"""Bytes of host memory that a process may take beside what its plan keeps there: batches, libraries, a tensor on its
way to the card."""


@dataclass(frozen=True, slots=True)
class Row:
    """A card of a table."""

    family: str
    resolution: int
    gigabytes: int
    """Free memory of the card, decimal."""
    host: int
    """GB of free host memory."""
    params: RequestParams = PARAMS

    def card(self) -> Card:
        """Return the fake card that the table assumes."""
        memory = self.gigabytes * 10**9
        return Card(capability=ADA if memory < CONSUMER_LIMIT else HOPPER, memory=memory)

    def name(self) -> str:
        """Name the row for a reader."""
        several = f" from {count}" if (count := len(self.params.columns.controls)) > 1 else ""
        return f"{self.family} {self.resolution}{several} on {self.gigabytes} GB with {self.host} GB of host memory"

    def lines(self, shown: list[tuple[Plan, str]]) -> Iterator[str]:
        """Train a step, draw a sample, and say what was planned and what it took. `shown`: rows before it,
        whose like is named instead of being trained again."""
        settings = RunSettings(resolution=self.resolution, control_resolution="target")
        card, model = self.card(), fake_model(self.family)
        try:
            plan = make_plan(model, self.params, settings, device_info(card, self.host * 10**9))
        except BadInput as refusal:
            yield f"  refused: {refusal}"
            return
        yield f"  plan: {plan.line()}"
        if same := [name for other, name in shown if other == plan]:
            yield f"  the plan of {same[0]}"
            return
        shown.append((plan, self.name()))
        run = run_plan(card, model, settings, plan, steps=1, sample=True, params=self.params)
        yield from (f"  {line}" for line in _findings(run, card.memory))


def _findings(run: Run, free: int) -> Iterator[str]:
    reserve = run.plan.expected["driver and allocator"]
    _, *marks = replay(run.log.memory, ExpandableAllocator())
    planned = {phase.name: phase for phase in run.plan.phases}
    reserved = max(mark.peak_reserved for mark in marks)
    yield _line("allocated in a step", run.peak, "planned beside the reserve", run.plan.bytes - reserve)
    yield f"planned is {(run.plan.bytes - reserve) / run.peak - 1:+.1%} of allocated"
    largest = max(phase.device for phase in run.plan.phases)
    yield _line("reserved by the allocator", reserved, "planned", largest)
    yield _line("planned", largest, "free", free)
    if run.sampling is not None:
        drawing = max(phase.peak for phase in (run.sampling, run.decoding) if phase is not None)
        yield _line("allocated in a sampling", drawing, "planned", planned["sampling"].device)
    for phase in run.plan.phases:
        yield f"planned for {phase.name}: {gigabytes(phase.device)} GB on the card, {gigabytes(phase.host)} on the host"
    allowed = planned["training"].host + BESIDE
    yield _line("in host memory", run.hosted + run.steps[0].page_locked, "planned, and what a process takes", allowed)


def _line(name: str, found: int, of: str, limit: int) -> str:
    sizes = (f"{size / 1e9:.2f} GB" for size in (found, limit))
    return f"{name} {{}}, {of} {{}}{'' if found <= limit else ' TOO MUCH'}".format(*sizes)
