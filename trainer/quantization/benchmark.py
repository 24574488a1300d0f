"""Whether a card multiplies codes faster than their values: found by doing both."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from ..config.settings import Precision
from .formats import FORMATS, QuantizedWeight
from .matmul import linear, linear_input_grad
from .quantize import quantize

ROWS, INPUTS, OUTPUTS = 4096, 3072, 12288
"""A product of the size that both models' MLPs have."""


MIN_SPEEDUP = 1.15
"""How many times faster codes have to be: less is not worth their rounding."""


ROUNDS = 5


@lru_cache(maxsize=8)
def fast_precisions(device: torch.device) -> frozenset[Precision]:
    """The precisions whose codes this device multiplies faster. Takes some seconds the first time, on NVIDIA cards."""
    if device.type != "cuda" or torch.version.hip:
        return frozenset()
    capability = torch.cuda.get_device_capability(device)
    return frozenset(
        row.precision
        for row in FORMATS.values()
        if row.precision and row.capability and capability >= row.capability and _pay(device, row.precision)
    )


def _pay(device: torch.device, precision: Precision) -> bool:
    try:
        weight = quantize(torch.randn(OUTPUTS, INPUTS, device=device, dtype=torch.bfloat16), precision)
        rows = torch.randn(ROWS, INPUTS, device=device, dtype=torch.bfloat16)
        gradient = torch.randn(ROWS, OUTPUTS, device=device, dtype=torch.bfloat16)
        quantized, values = (
            _seconds(_step(rows, gradient, weight, quantize_activations)) for quantize_activations in (True, False)
        )
    except Exception:  # A driver, a compiler or a library that cannot: it is done with the values then.
        return False
    return values > MIN_SPEEDUP * quantized


def _step(
    rows: torch.Tensor, gradient: torch.Tensor, weight: QuantizedWeight, quantize_activations: bool
) -> Callable[[], torch.Tensor]:
    quantized, scale, how = weight.quantized.view(torch.int8), weight.scale, weight.quantization

    def step() -> torch.Tensor:
        linear(rows, quantized, scale, how, quantize_activations, None)
        return linear_input_grad(gradient, quantized, scale, how, quantize_activations)

    return step


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    """The fastest of some rounds; the first, which compiles, is not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        torch.accelerator.synchronize()
        begun = time.perf_counter()
        step()
        torch.accelerator.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
