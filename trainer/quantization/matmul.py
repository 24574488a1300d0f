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

from .formats import FLOAT8, Quantization, dequantize, rotated

FEW_ROWS = 16
"""Up to so many rows the values are made: torch's int8 product takes no fewer, and modulation has one an example."""


MULTIPLES = {"int8_tensorwise": 8, "float8_e4m3fn": 16}
"""Formats whose codes can be multiplied, and what both sides of the weight must be multiples of."""


def product(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    integer: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """input [rows, in] @ weight.T + bias: [rows, out] in the input's dtype, which a bias has too.

    `weight` [out, in] is plain where `quantization` is None, else the codes as a QuantizedLinear holds them; `integer`:
    multiply codes where their format and the shapes allow it.
    """
    if integer and _can_multiply_codes(len(input), weight, quantization):
        rows = rotated(input, quantization.rotation)
        result = _product_of_codes(rows, _codes(weight, quantization).t(), scale)
        return result if bias is None else result.add_(bias)
    return nn.functional.linear(input, _values(weight, scale, quantization, input.dtype), bias)


def input_gradient(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    integer: bool,
) -> torch.Tensor:
    """The gradient of `product`'s input, [rows, in], from its result's, [rows, out], in the dtype of that."""
    if integer and _can_multiply_codes(len(gradient), weight, quantization):
        # The rows' scales of the weight lie along the sum: they go into the other factor.
        rows = gradient if scale is None else gradient * scale.t()
        # What GPUs multiply by is column-major.
        columns = _codes(weight, quantization).t().contiguous().t()
        return rotated(_product_of_codes(rows, columns, None, gradient.dtype), quantization.rotation)
    return gradient @ _values(weight, scale, quantization, gradient.dtype)


def _values(
    weight: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization | None, dtype: torch.dtype
) -> torch.Tensor:
    return weight.to(dtype) if quantization is None else dequantize(weight, scale, quantization, dtype)


def _codes(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """In the dtype that is multiplied."""
    return weight.view(FLOAT8.get(quantization.format, torch.int8))


def _can_multiply_codes(rows: int, weight: torch.Tensor, quantization: Quantization | None) -> bool:
    multiple = None if quantization is None else MULTIPLES.get(quantization.format)
    return multiple is not None and rows > FEW_ROWS and not (weight.shape[0] % multiple or weight.shape[1] % multiple)


def _product_of_codes(
    rows: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """rows [M, K], each quantized by its largest number, @ codes [K, N]; the columns times `scale`, one number or
    [N, 1]. In `dtype`, without one the rows'."""
    dtype = dtype or rows.dtype
    quantized, rescaled = _elementwise(rows)
    row_codes, row_scale = quantized(rows, codes.dtype)
    if codes.dtype == torch.int8:
        sums = torch._int_mm(row_codes, codes)
    else:
        one = torch.ones((), device=rows.device)
        # Scales of rows are applied below: not every card's own product takes them.
        wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        sums = torch._scaled_mm(row_codes, codes, scale_a=one, scale_b=one, out_dtype=wide)
    return rescaled(sums, row_scale, None if scale is None else scale.t(), dtype)


def _quantized(rows: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of this dtype, and the float32 scale of each row [M, 1]."""
    limit = 127 if kind == torch.int8 else torch.finfo(kind).max
    scale = (rows.abs().amax(1, keepdim=True).float() / limit).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = rows / scale
    return (numbers.round() if kind == torch.int8 else numbers).to(kind), scale


def _rescaled(sums: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    result = sums * rows
    return (result if columns is None else result * columns).to(dtype)


Elementwise = tuple[Callable[..., Any], Callable[..., Any]]


def _elementwise(rows: torch.Tensor) -> Elementwise:
    """`_quantized` and `_rescaled`, on a GPU each as one kernel: one by one their parts take as long as the product."""
    if not rows.is_cuda or torch.compiler.is_compiling() or find_spec("triton") is None:
        return _quantized, _rescaled
    return _fused()


@lru_cache(maxsize=1)
def _fused() -> Elementwise:
    return torch.compile(_quantized, dynamic=True), torch.compile(_rescaled, dynamic=True)
