"""FLUX.2 [klein] with one control and with two of a megapixel at full width, on a fake card with three blocks: every
kind of plan that the 25 blocks of 4B get on a card of 8 GB, and the 32 of 9B on cards of 16 and 12 GB."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from trainer.config.request import RequestParams
from trainer.config.settings import RunSettings
from trainer.memory.plan import Plan
from trainer.memory.planner import make_plan

from .allocator import ExpandableAllocator, replay
from .card import Card
from .runs import PARAMS, PARAMS_OF_TWO, Run, device_info, fake_model, run_on

ADA = (8, 9)
FEW = {"num_layers": 1, "num_single_layers": 2}
RESIDENT: dict[str, Any] = {"precision": "int8", "offload": "phases", "gradient_checkpointing": "on"}
STREAMED: dict[str, Any] = {"precision": "int8", "offload": "blocks"}
CASES = {
    ("klein 4B", 8, 1): RESIDENT,
    ("klein 4B", 8, 2): RESIDENT,
    ("klein 9B", 16, 1): RESIDENT,
    ("klein 9B", 16, 2): RESIDENT,
    ("klein 9B", 12, 1): STREAMED,
    ("klein 9B", 12, 2): STREAMED,
}
"""Model, the card's GB, and controls, with settings that give three blocks the plan of all."""


each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]} GB, {case[2]} controls")


def params(controls: int) -> RequestParams:
    return PARAMS if controls == 1 else PARAMS_OF_TWO


def card(gigabytes: int) -> Card:
    return Card(capability=ADA, memory=gigabytes * 10**9)


@cache
def whole_plan(case: tuple[str, int, int]) -> Plan:
    """The plan of all blocks."""
    name, gigabytes, controls = case
    settings = RunSettings(resolution=1024)
    return make_plan(fake_model(name), params(controls), settings, device_info(card(gigabytes)))


@cache
def run(case: tuple[str, int, int]) -> Run:
    name, gigabytes, controls = case
    settings = RunSettings(resolution=1024, **CASES[case])
    return run_on(card(gigabytes), fake_model(name, **FEW), settings, params=params(controls), sample=True)


def planned(ran: Run) -> int:
    """Bytes that the plan expects beside its reserve."""
    return ran.plan.bytes - ran.plan.expected["driver and allocator"]


@each_case
def test_the_plan_fits_the_card_and_few_blocks_have_its_like(case: tuple[str, int, int]) -> None:
    plan, few = whole_plan(case), run(case).plan
    assert max(phase.device for phase in plan.phases) <= case[1] * 10**9
    assert (plan.precision, plan.modulation_on_host) == (few.precision, few.modulation_on_host) == ("int8", False)
    assert bool(plan.streamed) == bool(few.streamed) == (CASES[case] is STREAMED)
    assert set(few.activation_checkpointing) == {"full"}
    assert plan.activation_checkpointing[0] == "full"


@each_case
def test_a_step_takes_what_was_planned(case: tuple[str, int, int]) -> None:
    """To a thousandth, and no more than 5 % less."""
    ran = run(case)
    assert ran.peak <= 1.001 * planned(ran) <= ran.plan.bytes, f"{ran.peak / 1e9:.3f} GB, {planned(ran) / 1e9:.3f}"
    assert planned(ran) <= 1.05 * ran.peak, f"{ran.peak / 1e9:.3f} GB, {planned(ran) / 1e9:.3f}"


@each_case
def test_the_allocator_reserves_no_more_than_planned(case: tuple[str, int, int]) -> None:
    ran = run(case)
    reserved = max(mark.peak_reserved for mark in replay(ran.log.memory, ExpandableAllocator()))
    assert ran.peak <= reserved <= ran.plan.bytes, f"{reserved / 1e9:.3f} GB, {ran.plan.bytes / 1e9:.3f}"


@each_case
def test_a_sample_takes_no_more_than_planned(case: tuple[str, int, int]) -> None:
    ran = run(case)
    assert ran.sampling is not None
    sampling = next(phase for phase in ran.plan.phases if phase.name == "sampling")
    assert ran.sampling.peak <= sampling.device


@each_case
def test_the_host_never_waits_for_the_card(case: tuple[str, int, int]) -> None:
    assert [wait for step in run(case).steps[1:] for wait in step.syncs] == []
