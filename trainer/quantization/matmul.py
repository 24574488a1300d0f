"""Products with a frozen weight, forward and backward.

A quantized weight is multiplied in one of two ways: its values are made for the moment, or the other factor's rows are
quantized too and the codes themselves are multiplied, which cards with int8 or fp8 units do faster than any other
product. Both need nothing but the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .formats import FORMATS, Quantization, dequantize
from .kernels import rotate, row_scale

MIN_MATMUL_ROWS = 16
"""Up to so many rows the values are made: torch's int8 product takes no fewer, and modulation has one an example."""


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    quantize_activations: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """input [rows, in] @ weight.T + bias: [rows, out] in the input's dtype, which a bias has too.

    `weight` [out, in] is plain where `quantization` is None, else the quantized values as a QuantizedLinear holds them.
    `quantize_activations`: multiply quantized values where their format and the shapes allow it.
    """
    if quantize_activations and _can_quantize_activations(len(input), weight, quantization):
        rows = rotate(input, quantization.rotation)
        result = _quantized_matmul(rows, _as_stored(weight, quantization).t(), scale)
        return result if bias is None else result.add_(bias)
    return nn.functional.linear(input, _values(weight, scale, quantization, input.dtype), bias)


def linear_input_grad(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    quantize_activations: bool,
) -> torch.Tensor:
    """The gradient of `linear`'s input, [rows, in], from its result's, [rows, out], in the dtype of that."""
    if quantize_activations and _can_quantize_activations(len(gradient), weight, quantization):
        # The rows' scales of the weight lie along the sum: they go into the other factor.
        rows = gradient if scale is None else gradient * scale.t()
        # What GPUs multiply by is column-major.
        columns = _as_stored(weight, quantization).t().contiguous().t()
        return rotate(_quantized_matmul(rows, columns, None, gradient.dtype), quantization.rotation)
    return gradient @ _values(weight, scale, quantization, gradient.dtype)


def _values(
    weight: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization | None, dtype: torch.dtype
) -> torch.Tensor:
    return weight.to(dtype) if quantization is None else dequantize(weight, scale, quantization, dtype)


def _as_stored(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    return weight.view(FORMATS[quantization.format].storage_dtype)


def _can_quantize_activations(rows: int, weight: torch.Tensor, quantization: Quantization | None) -> bool:
    multiple = None if quantization is None else FORMATS[quantization.format].matmul_multiple
    return (
        multiple is not None
        and rows > MIN_MATMUL_ROWS
        and not (weight.shape[0] % multiple or weight.shape[1] % multiple)
    )


def _quantized_matmul(
    rows: torch.Tensor, quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """rows [M, K], each quantized by its largest number, @ codes [K, N]; the columns times `scale`, one number or
    [N, 1]. In `dtype`, without one the rows'."""
    dtype = dtype or rows.dtype
    quantize_rows, rescale = _elementwise_kernels(rows)
    quantized_rows, row_scale = quantize_rows(rows, quantized.dtype)
    if quantized.dtype == torch.int8:
        sums = torch._int_mm(quantized_rows, quantized)
    else:
        one = torch.ones((), device=rows.device)
        # Scales of rows are applied below: not every card's own product takes them.
        wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        sums = torch._scaled_mm(quantized_rows, quantized, scale_a=one, scale_b=one, out_dtype=wide)
    return rescale(sums, row_scale, None if scale is None else scale.t(), dtype)


def _quantize_rows(rows: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of this dtype, and the float32 scale of each row [M, 1]."""
    scale = row_scale(rows, kind)
    numbers = rows / scale
    return (numbers.round() if kind == torch.int8 else numbers).to(kind), scale


def _rescale(sums: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    result = sums * rows
    return (result if columns is None else result * columns).to(dtype)


ElementwiseKernels = tuple[Callable[..., Any], Callable[..., Any]]


def _elementwise_kernels(rows: torch.Tensor) -> ElementwiseKernels:
    """`_quantize_rows` and `_rescale`. On a GPU each is compiled into one kernel: run eagerly they cost as much as the
    matmul."""
    if not rows.is_cuda or torch.compiler.is_compiling() or find_spec("triton") is None:
        return _quantize_rows, _rescale
    return _fused()


@lru_cache(maxsize=1)
def _fused() -> ElementwiseKernels:
    return torch.compile(_quantize_rows, dynamic=True), torch.compile(_rescale, dynamic=True)
