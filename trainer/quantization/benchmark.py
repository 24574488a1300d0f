"""Benchmark of matmuls: which quantized precisions a GPU multiplies faster in their storage dtype."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..config.settings import Precision
from .formats import FORMATS, QuantizedWeight
from .matmul import FrozenWeight, linear, linear_input_grad
from .quantize import quantize

ROWS, INPUTS, OUTPUTS = 4096, 3072, 12288
"""Shape of the benchmarked matmul: the tokens of one 1024 x 1024 image through the first MLP layer of both models."""


MIN_SPEEDUP = 1.15
"""Least speed-up that justifies rounding the activations too. A judgement."""


ROUNDS = 5
"""Timed repetitions, of which the fastest counts. A judgement."""


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for every other device."""
    if device.type != "cuda" or torch.version.hip:
        return None
    return torch.cuda.get_device_capability(device)


@dataclass(frozen=True, slots=True)
class FastPrecisions:
    """Quantized precisions whose matmuls are faster in their storage dtype, activations rounded, by `MIN_SPEEDUP`."""

    than_dequantized: frozenset[Precision] = frozenset()
    """Faster than dequantizing the weight for each matmul."""
    than_plain: frozenset[Precision] = frozenset()
    """Faster than a matmul with a weight in the compute dtype too."""


@lru_cache(maxsize=8)
def fast_precisions(device: torch.device) -> FastPrecisions:
    """Time the matmuls of this device.

    Takes some seconds the first time on NVIDIA GPUs, where the kernels are compiled; nothing is fast everywhere else.
    """
    capability = compute_capability(device)
    if capability is None:
        return FastPrecisions()
    speedups: dict[Precision, tuple[float, float]] = {
        row.precision: _speedups(device, row.precision)
        for row in FORMATS.values()
        if row.precision and row.runs_on(capability)
    }
    return FastPrecisions(
        frozenset(precision for precision, (dequantized, _) in speedups.items() if dequantized > MIN_SPEEDUP),
        frozenset(precision for precision, both in speedups.items() if min(both) > MIN_SPEEDUP),
    )


def _speedups(device: torch.device, precision: Precision) -> tuple[float, float]:
    """Time that a dequantized and a plain matmul take, as multiples of that in the storage dtype."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    try:
        plain = torch.randn(OUTPUTS, INPUTS, device=device, dtype=dtype)
        weight = quantize(plain, precision)
        rows = torch.randn(ROWS, INPUTS, device=device, dtype=dtype)
        gradient = torch.randn(ROWS, OUTPUTS, device=device, dtype=dtype)
        low_precision = _seconds(_step(rows, gradient, weight, True))
        dequantized = _seconds(_step(rows, gradient, weight, False))
        unquantized = _seconds(_step(rows, gradient, plain, False))
    except Exception:  # A driver, compiler or library without support raises errors of its own: dequantize then.
        return 0.0, 0.0
    return dequantized / low_precision, unquantized / low_precision


def _step(
    rows: torch.Tensor, gradient: torch.Tensor, weight: QuantizedWeight | torch.Tensor, quantize_activations: bool
) -> Callable[[], torch.Tensor]:
    if isinstance(weight, torch.Tensor):
        frozen = FrozenWeight(weight, None, None, False)
    else:
        quantized = weight.quantized.view(torch.int8)
        frozen = FrozenWeight(quantized, weight.scale, weight.quantization, quantize_activations)

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
