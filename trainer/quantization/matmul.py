"""Matmuls with a frozen weight, forward and backward.

A quantized weight is multiplied in one of two ways: dequantized for the matmul, or with the rows of the other factor
quantized dynamically, in the storage dtype, which is fastest on GPUs with int8 or fp8 tensor cores.
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
"""Matmuls of up to this many rows dequantize: `torch._int_mm` needs more, and modulation has one row a sample."""


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    quantize_activations: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute input @ weight.T + bias: [rows, out] in the dtype of `input` [rows, in], which `bias` [out] has too.

    `weight` is plain [out, in] float where `quantization` is None, else the int8 bytes of a QuantizedLinear with its
    float32 `scale`. `quantize_activations`: multiply in the storage dtype where the format and the shapes allow it.
    """
    low_precision = _low_precision_dtype(len(input), weight, quantization) if quantize_activations else None
    if quantization is not None and low_precision is not None:
        rows = rotate(input, quantization.rotation)
        result = _quantized_matmul(rows, weight.view(low_precision).t(), scale)
        return result if bias is None else result.add_(bias)
    return nn.functional.linear(input, _values(weight, scale, quantization, input.dtype), bias)


def linear_input_grad(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    quantization: Quantization | None,
    quantize_activations: bool,
) -> torch.Tensor:
    """Compute the gradient of `linear`'s input [rows, in] from that of its output [rows, out], in the latter's dtype.
    The other arguments are those of `linear`, float32 `scale` included."""
    low_precision = _low_precision_dtype(len(gradient), weight, quantization) if quantize_activations else None
    if quantization is not None and low_precision is not None:
        # The weight's row scales lie along the summed dimension: they are folded into the gradient.
        rows = gradient if scale is None else gradient * scale.t()
        # GPU kernels take a column-major second factor.
        columns = weight.view(low_precision).t().contiguous().t()
        return rotate(_quantized_matmul(rows, columns, None, gradient.dtype), quantization.rotation)
    return gradient @ _values(weight, scale, quantization, gradient.dtype)


def _values(
    weight: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization | None, dtype: torch.dtype
) -> torch.Tensor:
    return weight.to(dtype) if quantization is None else dequantize(weight, scale, quantization, dtype)


def _low_precision_dtype(rows: int, weight: torch.Tensor, quantization: Quantization | None) -> torch.dtype | None:
    """The storage dtype where that many rows can be multiplied by the weight in it, else None."""
    if quantization is None or rows <= MIN_MATMUL_ROWS:
        return None
    row = FORMATS[quantization.format]
    if row.matmul_multiple is None or weight.shape[0] % row.matmul_multiple or weight.shape[1] % row.matmul_multiple:
        return None
    return row.storage_dtype


def _quantized_matmul(
    rows: torch.Tensor, quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """rows [M, K] float, quantized dynamically with a scale each, @ quantized [K, N], the columns times `scale`, scalar
    or [N, 1]: [M, N] in `dtype`, by default that of the rows."""
    dtype = dtype or rows.dtype
    quantize_rows, rescale = _elementwise_kernels(rows)
    quantized_rows, row_scale = quantize_rows(rows, quantized.dtype)
    if quantized.dtype == torch.int8:
        sums = torch._int_mm(quantized_rows, quantized)  # pyright: ignore[reportPrivateImportUsage] (no public one)
    else:
        one = torch.ones((), device=rows.device)
        # Row scales are applied below: not every GPU's fp8 kernel takes row-wise ones.
        wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        matmul = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage] (no public one)
        sums = matmul(quantized_rows, quantized, scale_a=one, scale_b=one, out_dtype=wide)
    return rescale(sums, row_scale, None if scale is None else scale.t(), dtype)


def _quantize_activations(rows: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [M, K] float -> quantized [M, K] of dtype `kind`, and their float32 scales [M, 1]."""
    scale = row_scale(rows, kind)
    values = rows / scale
    return (values.round() if kind == torch.int8 else values).to(kind), scale


def _rescale(sums: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    result = sums * rows
    return (result if columns is None else result * columns).to(dtype)


ElementwiseKernels = tuple[Callable[..., Any], Callable[..., Any]]


def _elementwise_kernels(rows: torch.Tensor) -> ElementwiseKernels:
    """`_quantize_activations` and `_rescale`, each compiled into one kernel on a GPU: run eagerly they cost as much
    as the matmul."""
    if not rows.is_cuda or torch.compiler.is_compiling() or find_spec("triton") is None:
        return _quantize_activations, _rescale
    return _fused()


@lru_cache(maxsize=1)
def _fused() -> ElementwiseKernels:
    return torch.compile(_quantize_activations, dynamic=True), torch.compile(_rescale, dynamic=True)
