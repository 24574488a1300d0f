"""Qwen-Image-Edit-2511 with two controls of a megapixel at full width, on a fake card with three blocks: every kind of
plan that its 60 blocks get on cards of 24, 16 and 12 GB."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from trainer.config.settings import RunSettings
from trainer.memory.planner import make_plan

from .allocator import ExpandableAllocator, replay
from .card import Card
from .runs import PARAMS_OF_TWO, Run, device_info, fake_model, run_on

ADA = (8, 9)
FEW = {"num_layers": 3}
INDEX = "torch.int32"
"""The index of the tokens by timestep, which diffusers' transformer makes from a list at every pass."""
KINDS: dict[int, dict[str, Any]] = {
    24: {"precision": "int8", "offload": "modulation", "gradient_checkpointing": "on"},
    16: {"precision": "int8", "offload": "blocks"},
    12: {"precision": "int8", "offload": "blocks"},
}
"""Settings that give three blocks the plan of 60, by the card's GB."""


@cache
def run(gigabytes: int) -> Run:
    """On the smallest card with these settings."""
    smallest = min(other for other, settings in KINDS.items() if settings == KINDS[gigabytes])
    if smallest < gigabytes:
        return run(smallest)
    card = Card(capability=ADA, memory=gigabytes * 10**9)
    settings = RunSettings(resolution=1024, **KINDS[gigabytes])
    return run_on(card, fake_model("2511", **FEW), settings, params=PARAMS_OF_TWO)


def planned(ran: Run) -> int:
    """Bytes that the plan expects beside its reserve."""
    return ran.plan.bytes - ran.plan.expected["driver and allocator"]


@pytest.mark.parametrize("gigabytes", KINDS)
def test_the_plan_of_few_blocks_is_that_of_all(gigabytes: int) -> None:
    card = Card(capability=ADA, memory=gigabytes * 10**9)
    plan = make_plan(fake_model("2511"), PARAMS_OF_TWO, RunSettings(resolution=1024), device_info(card))
    few = run(gigabytes).plan
    assert plan.bytes <= gigabytes * 10**9
    assert (plan.precision, plan.modulation_on_host) == (few.precision, few.modulation_on_host) == ("int8", True)
    assert bool(plan.streamed) == bool(few.streamed)
    assert few.activation_checkpointing[0] == plan.activation_checkpointing[0] == "full"
    assert plan.inputs_on_host == few.inputs_on_host


@pytest.mark.parametrize("gigabytes", KINDS)
def test_a_step_takes_what_was_planned(gigabytes: int) -> None:
    """To a thousandth: a megabyte, at any number of blocks, is not counted."""
    ran = run(gigabytes)
    assert ran.peak <= 1.001 * planned(ran) <= ran.plan.bytes, f"{ran.peak / 1e9:.3f} GB, {planned(ran) / 1e9:.3f}"
    assert planned(ran) <= 1.03 * ran.peak, f"{ran.peak / 1e9:.3f} GB, {planned(ran) / 1e9:.3f}"


@pytest.mark.parametrize("gigabytes", KINDS)
def test_the_allocator_reserves_no_more_than_planned(gigabytes: int) -> None:
    ran = run(gigabytes)
    reserved = max(mark.peak_reserved for mark in replay(ran.log.memory, ExpandableAllocator()))
    assert ran.peak <= reserved <= ran.plan.bytes, f"{reserved / 1e9:.3f} GB, {ran.plan.bytes / 1e9:.3f}"


@pytest.mark.parametrize("gigabytes", KINDS)
def test_the_host_waits_for_the_index_of_tokens_alone(gigabytes: int) -> None:
    """Once a pass, before its first block: a copy from a list."""
    waits = [wait for step in run(gigabytes).steps[1:] for wait in step.syncs]
    assert all(INDEX in wait for wait in waits)
    assert len(waits) <= 2, waits
