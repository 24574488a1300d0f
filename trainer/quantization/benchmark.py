"""Benchmark of low-precision matmuls: which precisions a GPU multiplies faster in their storage dtype."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from ..config.settings import Precision
from .formats import FORMATS, QuantizedWeight
from .matmul import FrozenWeight, linear, linear_input_grad
from .quantize import quantize

ROWS, INPUTS, OUTPUTS = 4096, 3072, 12288
"""Shape of the benchmarked matmul: the tokens of one 1024 x 1024 image through the first MLP layer of both models."""


MIN_SPEEDUP = 1.15
"""Least speed-up over dequantizing that justifies rounding the activations too. A judgement."""


ROUNDS = 5
"""Timed repetitions, of which the fastest counts. A judgement."""


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for every other device."""
    if device.type != "cuda" or torch.version.hip:
        return None
    return torch.cuda.get_device_capability(device)


@lru_cache(maxsize=8)
def fast_precisions(device: torch.device) -> frozenset[Precision]:
    """Find the precisions whose matmuls are faster in their storage dtype on this device.

    Takes some seconds the first time on NVIDIA GPUs, where the kernels are compiled; empty everywhere else.
    """
    capability = compute_capability(device)
    if capability is None:
        return frozenset()
    return frozenset(
        row.precision
        for row in FORMATS.values()
        if row.precision and row.runs_on(capability) and _is_faster(device, row.precision)
    )


def _is_faster(device: torch.device, precision: Precision) -> bool:
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    try:
        weight = quantize(torch.randn(OUTPUTS, INPUTS, device=device, dtype=dtype), precision)
        rows = torch.randn(ROWS, INPUTS, device=device, dtype=dtype)
        gradient = torch.randn(ROWS, OUTPUTS, device=device, dtype=dtype)
        low_precision, dequantized = (
            _seconds(_step(rows, gradient, weight, quantize_activations)) for quantize_activations in (True, False)
        )
    except Exception:  # A driver, compiler or library without support raises errors of its own: dequantize then.
        return False
    return dequantized > MIN_SPEEDUP * low_precision


def _step(
    rows: torch.Tensor, gradient: torch.Tensor, weight: QuantizedWeight, quantize_activations: bool
) -> Callable[[], torch.Tensor]:
    frozen = FrozenWeight(weight.quantized.view(torch.int8), weight.scale, weight.quantization, quantize_activations)

    def step() -> torch.Tensor:
        linear(frozen, rows, None)
        return linear_input_grad(frozen, gradient)

    return step


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    """Time a step: the fastest of `ROUNDS`, after one that compiles and is not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        torch.accelerator.synchronize()
        start = time.perf_counter()
        step()
        torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
