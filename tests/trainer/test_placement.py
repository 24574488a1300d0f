"""Whatever a plan keeps off the device, a step is the plain step, to the bit."""

from __future__ import annotations

import pytest

from trainer.models.blocks import blocks_of
from trainer.models.family import Grid
from trainer.plan import Plan
from trainer.streaming import following

from .steps import deepened, plan, random_batch, trained


@pytest.fixture(scope="module")
def deep(kontext, qwen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    return {model.family.name: deepened(model, folder / model.family.name) for model in (kontext, qwen)}


@pytest.fixture(params=["flux-kontext", "qwen-image-edit"])
def model(request, deep):
    return deep[request.param]


def count(model) -> int:
    return len(blocks_of(model.empty_transformer()))


def every(model, mode: str) -> dict:
    return {"recompute": (mode,) * count(model)}


def plans(model) -> dict[str, Plan]:
    number = count(model)
    mixed = tuple(["none", "selective", "full"][index % 3] for index in range(number))
    return {
        "modulation": plan(modulation_on_host=True),
        "full": plan(**every(model, "full")),
        "selective": plan(**every(model, "selective")),
        "mixed": plan(recompute=mixed),
        "inputs": plan(inputs_on_host=True, **every(model, "full")),
        "inputs of selective": plan(inputs_on_host=True, **every(model, "selective")),
        "streamed": plan(streamed=frozenset(range(number)), **every(model, "full")),
        "some streamed": plan(
            streamed=frozenset(range(1, number, 2)), recompute=("none", "full") * (number // 2) + ("none",)
        ),
        "one streamed": plan(streamed=frozenset([2]), recompute=("none", "selective", "selective")),
        "all": plan(
            streamed=frozenset(range(number)), inputs_on_host=True, modulation_on_host=True, **every(model, "full")
        ),
        "all selective": plan(
            streamed=frozenset(range(number)), inputs_on_host=True, modulation_on_host=True, **every(model, "selective")
        ),
    }


NAMES = [
    "modulation",
    "full",
    "selective",
    "mixed",
    "inputs",
    "inputs of selective",
    "streamed",
    "some streamed",
    "one streamed",
    "all",
    "all selective",
]


def some_batches(model):
    """Batches of one and two, of equal and of unequal texts, of two shapes."""
    return [
        random_batch(model, 1),
        random_batch(model, 2, (6, 6)),
        random_batch(model, 3, (6, 4)),
        random_batch(model, 4, (5,), Grid(2, 6)),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_plan_gives_the_plain_steps(model, name):
    plain = trained(model, plan(), some_batches(model))
    ours = trained(model, plans(model)[name], some_batches(model))
    assert all(gradient.any() for gradient in plain.gradients[0].values())
    assert ours.equals(plain)


@pytest.mark.parametrize(("count", "order"), [(1, "0000"), (2, "01100110"), (4, "0123321001233210")])
def test_the_next_block_in_training(count, order):
    previous = -1
    for index, block in enumerate(order[:-1]):
        expected = next((int(later) for later in order[index + 1 :] if later != block), int(block))
        assert following(int(block), previous, count, training=True) == (expected if count > 1 else 0)
        previous = int(block)
