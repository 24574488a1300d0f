"""Matmuls with a frozen weight, forward and backward.

A quantized weight is multiplied in one of two ways: dequantized for the matmul, or with the rows of the other factor
quantized dynamically, in the storage dtype, which is fastest on GPUs with int8 or fp8 tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..compiled import compiled, fuses
from .formats import FORMATS, Quantization, dequantize
from .kernels import rotate, row_scale

MIN_MATMUL_ROWS = 16
"""Matmuls of up to this many rows dequantize: `torch._int_mm` needs more, and modulation has one row a sample."""


MAX_FOLDED_RANK = 32
"""Largest rank of a low-rank product that is added while sums are rescaled, where it saves reading and writing the
result once more. A judgement: 32 multiplications and cached loads a value take about as long as its memory access."""


@dataclass(frozen=True, slots=True)
class FrozenWeight:
    """A frozen weight [out, in] and how to multiply it."""

    weight: torch.Tensor
    """Plain [out, in] float, or the int8 bytes of a QuantizedLinear."""
    scale: torch.Tensor | None
    """float32: scalar, [out, 1], or flat with one for each block; None: 1, or a plain weight."""
    quantization: Quantization | None
    """None: the weight is plain."""
    quantize_activations: bool
    """Multiply in the storage dtype where the format and the shapes allow it."""

    def low_precision(self, rows: int) -> torch.dtype | None:
        """The storage dtype where that many rows are multiplied in it, else None."""
        if not self.quantize_activations or self.quantization is None or rows <= MIN_MATMUL_ROWS:
            return None
        row = FORMATS[self.quantization.format]
        if row.matmul_multiple is None or any(side % row.matmul_multiple for side in self.weight.shape):
            return None
        return row.storage_dtype

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] in a float `dtype`."""
        if self.quantization is None:
            return self.weight.to(dtype)
        return dequantize(self.weight, self.scale, self.quantization, dtype)


def linear(frozen: FrozenWeight, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute input @ weight.T + bias: [rows, out] in the dtype of `input` [rows, in], which `bias` [out] has too."""
    kind = frozen.low_precision(len(input))
    if kind is None:
        return nn.functional.linear(input, frozen.values(input.dtype), bias)
    rows, row_scales = _quantize(rotate(input, _rotation(frozen)), None, kind)
    sums = _multiply(rows, frozen.weight.view(kind).t(), input.dtype)
    return _rescale(sums, row_scales, _columns(frozen), bias, input.dtype)


def linear_input_grad(frozen: FrozenWeight, gradient: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of `linear`'s input [rows, in] from that of its output [rows, out], in the latter's float
    dtype."""
    kind = frozen.low_precision(len(gradient))
    if kind is None:
        return gradient @ frozen.values(gradient.dtype)
    sums, row_scales = _grad_sums(frozen, gradient, kind)
    return rotate(_rescale(sums, row_scales, None, None, gradient.dtype), _rotation(frozen))


LowRank = tuple[torch.Tensor, torch.Tensor]
"""Factors [rows, rank] and [rank, columns] of a low-rank product, in the compute dtype."""


def linears_with_low_rank(
    layers: Sequence[tuple[FrozenWeight, torch.Tensor | None]], input: torch.Tensor, products: Sequence[LowRank]
) -> list[torch.Tensor]:
    """Compute `linear` of several layers (weight, bias [out]) with one input [rows, in], each plus its low-rank
    product, in the dtype of `input`. The input is quantized once for all of one format."""
    quantized: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
    results = []
    for (frozen, bias), (left, right) in zip(layers, products, strict=True):
        kind = frozen.low_precision(len(input))
        if kind is None:
            start = left @ right if bias is None else torch.addmm(bias, left, right)
            results.append(start.addmm_(input, frozen.values(input.dtype).t()))
            continue
        key = _rotation(frozen), kind
        if key not in quantized:
            quantized[key] = _quantize(rotate(input, key[0]), None, kind)
        rows, row_scales = quantized[key]
        sums = _multiply(rows, frozen.weight.view(kind).t(), input.dtype)
        if len(right) <= MAX_FOLDED_RANK and fuses(sums):
            results.append(_rescale_low_rank(sums, row_scales, _columns(frozen), bias, left, right, input.dtype))
        else:
            results.append(_rescale(sums, row_scales, _columns(frozen), bias, input.dtype).addmm_(left, right))
    return results


def input_grad_with_low_rank(
    weights: Sequence[FrozenWeight], gradients: Sequence[torch.Tensor], product: LowRank
) -> torch.Tensor:
    """Compute the sum of `linear_input_grad` of several layers with one input, from the gradients [rows, out] of their
    outputs, plus a low-rank product: [rows, in] in the gradients' dtype."""
    dtype, (left, right) = gradients[0].dtype, product
    kinds = [frozen.low_precision(len(gradients[0])) for frozen in weights]
    if None not in kinds and len({_rotation(frozen) for frozen in weights}) == 1:
        rotation = _rotation(weights[0])
        every = [_grad_sums(*each) for each in zip(weights, gradients, kinds, strict=True)]
        (first, *others), row_scales = zip(*every, strict=True)
        if not others and not rotation and len(right) <= MAX_FOLDED_RANK and fuses(first):
            return _rescale_low_rank(first, row_scales[0], None, None, left, right, dtype)
        return rotate(_rescale_sum(first, others, list(row_scales), dtype), rotation).addmm_(left, right)
    total = left @ right
    for frozen, gradient, kind in zip(weights, gradients, kinds, strict=True):
        if kind is None:
            total.addmm_(gradient, frozen.values(dtype))
        else:
            total += linear_input_grad(frozen, gradient)
    return total


def _rotation(frozen: FrozenWeight) -> int:
    return frozen.quantization.rotation if frozen.quantization is not None else 0


def _columns(frozen: FrozenWeight) -> torch.Tensor | None:
    """Scales of the output's columns: a scalar, [1, out], or None; float32."""
    return None if frozen.scale is None else frozen.scale.t()


def _grad_sums(
    frozen: FrozenWeight, gradient: torch.Tensor, kind: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums [rows, in] of the input's gradient in low precision, and their row scales."""
    assert kind is not None
    # The weight's row scales lie along the summed dimension: they are folded into the gradient.
    rows, row_scales = _quantize(gradient, _columns(frozen), kind)
    # GPU kernels take a column-major second factor.
    columns = frozen.weight.view(kind).t().contiguous().t()
    return _multiply(rows, columns, gradient.dtype), row_scales


def _multiply(rows: torch.Tensor, quantized: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply [M, K] and [K, N] of one storage dtype: sums [M, N] in int32, or for float8 in a wide float dtype."""
    if quantized.dtype == torch.int8:
        return torch._int_mm(rows, quantized)  # pyright: ignore[reportPrivateImportUsage] (no public one)
    one = torch.ones((), device=rows.device)
    # Row scales are applied afterwards: not every GPU's fp8 kernel takes row-wise ones.
    wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    matmul = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage] (no public one)
    return matmul(rows, quantized, scale_a=one, scale_b=one, out_dtype=wide)


@compiled
def _quantize(rows: torch.Tensor, columns: torch.Tensor | None, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [M, K] float, times `columns` where given -> quantized [M, K] of dtype `kind`, and float32 scales [M, 1]."""
    rows = rows if columns is None else rows * columns
    scale = row_scale(rows, kind)
    values = rows / scale
    return (values.round() if kind == torch.int8 else values).to(kind), scale


@compiled
def _rescale(
    sums: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    result = sums * rows
    result = (result if columns is None else result * columns).to(dtype)
    return result if bias is None else result + bias


@compiled
def _rescale_low_rank(
    sums: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    bias: torch.Tensor | None,
    left: torch.Tensor,
    right: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`_rescale` plus left @ right, summed in float32. Written out: a matmul would be a kernel of its own."""
    result = sums * rows
    result = result if columns is None else result * columns
    result = result if bias is None else result + bias
    for index in range(len(right)):
        result = result + left[:, index : index + 1].float() * right[index].float()
    return result.to(dtype)


@compiled
def _rescale_sum(
    first: torch.Tensor, others: list[torch.Tensor], rows: list[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """Sum of `_rescale` of several sums, added in float32."""
    result = first * rows[0]
    for sums, scale in zip(others, rows[1:], strict=True):
        result = result + sums * scale
    return result.to(dtype)
