"""Whatever a plan keeps off the card or computes again, a step is the plain step, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .steps import BLOCKS, MODELS, cosine, equal, gradients, plan, reduced

ALL = frozenset(range(BLOCKS))
PLANS: dict[str, dict[str, Any]] = {
    "modulation in host memory": {"modulation_on_host": True},
    "selective": {"activation_checkpointing": ("selective",) * BLOCKS},
    "full": {"activation_checkpointing": ("full",) * BLOCKS},
    "mixed": {"activation_checkpointing": ("full", "selective")},
    "inputs in host memory": {"activation_checkpointing": ("full",) * BLOCKS, "inputs_on_host": True},
    "streamed": {"activation_checkpointing": ("full",) * BLOCKS, "streamed": ALL},
    "everything off the card": {
        "activation_checkpointing": ("full",) * BLOCKS,
        "streamed": ALL,
        "inputs_on_host": True,
        "modulation_on_host": True,
    },
}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_every_plan_gives_the_plain_step(name: str, precision: str, deterministic: None) -> None:
    model = reduced(name)
    products = precision == "int8"
    plain = gradients(model, plan(precision=precision, quantize_activations=products))
    again = gradients(model, plan(precision=precision, quantize_activations=products))
    assert equal(again, plain), "the card's kernels sum in another order each time"
    assert all(gradient.any() for gradient in plain[0].values())
    different = [
        what
        for what, how in PLANS.items()
        if not equal(gradients(model, plan(precision=precision, quantize_activations=products, **how)), plain)
    ]
    assert different == []


@pytest.mark.parametrize(("name", "how"), [("kontext", {}), ("qwen", PLANS["everything off the card"])])
def test_compiled_blocks_give_the_gradients_of_plain_ones(name: str, how: dict[str, Any]) -> None:
    model = reduced(name)
    plain = gradients(model, plan())
    assert cosine(gradients(model, plan(compile=True, **how)), plain) > 0.999


@pytest.mark.parametrize("name", MODELS)
def test_low_precision_products_give_the_gradients_of_dequantized_weights(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    model = reduced(name)
    plain = gradients(model, plan(precision="fp32", dtype=torch.float32))
    bf16 = cosine(gradients(model, plan()), plain)
    record_property("figure", f"{name}: cosine of the gradients with float32's: bf16 {bf16:.5f}")
    assert bf16 > 0.98
    for precision in ("int8", "fp8"):
        weights_only = gradients(model, plan(precision=precision))
        products = gradients(model, plan(precision=precision, quantize_activations=True))
        cosines = f"{precision} weights {cosine(weights_only, plain):.5f}, products {cosine(products, plain):.5f}"
        record_property("figure", f"{name}: {cosines}")
        assert cosine(weights_only, plain) > bf16 - 0.01
        assert cosine(products, plain) > bf16 - 0.01
