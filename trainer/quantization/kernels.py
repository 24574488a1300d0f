"""Quantize and dequantize kernels of the formats in `formats.FORMATS`.

Dequantization repeats ComfyUI's arithmetic to the bit, so that a file gives the weights that ComfyUI draws with.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NF4_BLOCK = 64
"""Consecutive values that share a scale in nf4: the default of bitsandbytes and of QLoRA (arXiv:2305.14314)."""


def row_scale(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scale of each row of `rows` [N, K] float, [N, 1] float32: maps the row's largest magnitude to the largest value
    of `dtype`, int8 (127) or a float8."""
    limit = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    return (rows.abs().amax(1, keepdim=True).float() / limit).clamp(min=torch.finfo(torch.float32).tiny)


QUANTIZED_PART_BYTES = 2**20
"""Float32 bytes of a weight's rows that the CPU quantizes at a time. Gaps that temporaries of this size leave in the C
library's heap are too small for weights, so that each is used again."""


def quantize_rows(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [out, in] float to int8 or a float8 `dtype` [out, in], with float32 row scales [out, 1].
    Converts some rows at a time on the CPU, so that temporaries stay small."""
    quantized = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
    rows = max(1, QUANTIZED_PART_BYTES // (weight.shape[1] * torch.float32.itemsize))
    rows = rows if weight.device.type == "cpu" else len(weight)
    for part, target, part_scale in zip(weight.split(rows), quantized.split(rows), scale.split(rows), strict=True):
        part_scale.copy_(row_scale(part, dtype))
        values = part / part_scale
        target.copy_(values.round_() if dtype == torch.int8 else values)
    return quantized, scale


def dequantize_int8(quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Values [out, in] in `dtype` of an int8 weight [out, in] with a float32 scale, scalar or [out, 1]; None is 1."""
    values = quantized.view(torch.int8)
    if scale is None:
        return values.to(dtype)
    if values.device.type == "mps":
        return (values.float() * scale).to(dtype)
    # One kernel on CUDA: multiplied in float32 and rounded to `dtype` as it is written.
    return torch.mul(values, scale, out=torch.empty(values.shape, dtype=dtype, device=values.device))


def dequantize_float8(
    float8: torch.dtype, quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Values [out, in] in `dtype` of a `float8` weight [out, in] (or its bytes, int8 or uint8) with a float32 scale,
    scalar or [out, 1]; None is 1."""
    values = float8_values(quantized, float8, dtype, by_table=quantized.device.type == "mps")
    return values if scale is None else values.mul_(scale.to(dtype))


def float8_values(quantized: torch.Tensor, float8: torch.dtype, dtype: torch.dtype, by_table: bool) -> torch.Tensor:
    """Convert `float8` values, or their bytes (int8 or uint8), of any shape to `dtype`. `by_table` looks them up in a
    table of all 256, for devices without float8 (MPS)."""
    if not by_table:
        return quantized.view(float8).to(dtype)
    table = torch.arange(256, dtype=torch.uint8).view(float8).to(dtype)
    return table.to(quantized.device)[quantized.view(torch.uint8).int()]


def quantize_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [out, in] float to nf4: uint8 [out, in/2], two values a byte, and float32 scales
    [out * in / 64]."""
    from bitsandbytes import functional

    quantized, state = functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return quantized.reshape(len(weight), -1), state.absmax


def dequantize_nf4(quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Values [out, in] in `dtype` of nf4 bytes [out, in/2], int8 or uint8, with float32 scales [out * in / 64]."""
    from bitsandbytes import functional  # noqa: F401 (registers the operator)

    # As one row: on CPUs with AVX-512, bitsandbytes 0.50 takes the wrong scales where a block spans two rows.
    values = (2 * quantized.numel(),)
    flat = torch.ops.bitsandbytes.dequantize_4bit(quantized.view(torch.uint8), scale, NF4_BLOCK, "nf4", values, dtype)
    return flat.view(len(quantized), -1)


GGML_PART_BYTES = 2**25
"""Bytes of values that are dequantized at a time from a ggml type; the temporaries take about six times as much. A
judgement: large enough for a GPU, small beside a layer's activations."""


def dequantize_ggml(
    ggml_type: str, quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Values [out, in] in `dtype` of rows of ggml blocks [out, bytes], int8 or uint8. The blocks carry their own
    scales: `scale` is None. Converts some rows at a time, so that temporaries stay small."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[ggml_type]
    block, size = GGML_QUANT_SIZES[kind]
    columns = quantized.shape[1] // size * block
    values = torch.empty(quantized.shape[0], columns, dtype=dtype, device=quantized.device)
    rows = max(1, GGML_PART_BYTES // (columns * torch.float32.itemsize))
    # A compiler folds the constants into its kernels.
    with nullcontext() if torch.compiler.is_compiling() else _ConstantsWithoutWaiting():
        for part, target in zip(quantized.view(torch.uint8).split(rows), values.split(rows), strict=True):
            target.view(-1, block).copy_(dequantize_functions[kind](part.reshape(-1, size), block, size))
    return values


class _ConstantsWithoutWaiting(TorchFunctionMode):
    """Makes `torch.tensor(list, device=GPU)` a copy that the CPU does not wait for. diffusers' dequantization has up to
    five in each call, and each would wait for all kernels before it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device", "cpu")).type == "cuda":
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).pin_memory().to(device, non_blocking=True)
        return func(*args, **kwargs)


def rotate(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Multiply each group of `size` features of `rows` [N, K] float by the Hadamard matrix, which is its own inverse:
    [N, K] in the same dtype. 0 returns `rows`."""
    if not size:
        return rows
    groups = rows.unflatten(1, (-1, size)) @ _hadamard(size, rows.device).to(rows.dtype)
    return groups.flatten(1)


@lru_cache(maxsize=8)
def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    """Regular symmetric Hadamard matrix [size, size] float32 of a power of 4, scaled to be orthogonal: Kronecker powers
    of one 4 x 4 matrix, as comfy-kitchen builds it for ConvRot."""
    base = torch.tensor(
        [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32, device=device
    )
    matrix = base
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, base)
    return matrix / size**0.5
