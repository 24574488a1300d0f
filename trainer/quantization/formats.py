"""Linear layers whose frozen weights are codes: fp8, int8, nf4, or GGUF blocks, as a file has them or made from plain
ones.

Every layer keeps the codes alone, also for the backward pass; a weight in the format of the computation exists only
while it is multiplied. Dequantization of files repeats ComfyUI's arithmetic to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

NF4_BLOCK = 64
"""Consecutive numbers of a weight that share a scale in nf4."""


FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a weight's codes are to be read."""

    format: str
    """`float8_e4m3fn`, `float8_e5m2`, `int8_tensorwise`, `nf4`, or `gguf:` and ggml's name of the type."""
    rotation: int = 0
    """Size of the Hadamard matrix that was multiplied on groups of input features ("convrot"); 0: none."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in its stored form."""

    quantized: torch.Tensor
    """The weight in its storage dtype, or uint8 [out, bytes] for GGUF and nf4."""
    scale: torch.Tensor | None
    """float32, one number or one for each row [out, 1]; one for each block of nf4; None: 1."""
    quantization: Quantization

    def split(self, rows: Sequence[int]) -> list[QuantizedWeight]:
        """Blocks of consecutive rows."""
        quantized = self.quantized.split(list(rows))
        scales = [self.scale] * len(quantized)
        if self.scale is not None and self.scale.numel() > 1:
            scales = self.scale.reshape(-1, 1).split(list(rows))
        return [QuantizedWeight(c, s, self.quantization) for c, s in zip(quantized, scales, strict=True)]

    def clone(self) -> QuantizedWeight:
        """The same in memory of its own."""
        return QuantizedWeight(
            self.quantized.clone(), None if self.scale is None else self.scale.clone(), self.quantization
        )

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's values [out, in] in `dtype`."""
        return dequantize(self.quantized, self.scale, self.quantization, dtype)


def dequantize(
    quantized: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization, dtype: torch.dtype
) -> torch.Tensor:
    """The values of stored codes (in their storage dtype, or as bytes) in `dtype`."""
    kind = quantization.format
    if kind in FLOAT8:
        values = float8_values(quantized, kind, dtype, by_table=quantized.device.type == "mps")
        return values if scale is None else values * scale.to(dtype)
    if kind == "nf4":
        from bitsandbytes import functional  # noqa: F401 (makes the operator known)

        shape = (quantized.shape[0], 2 * quantized.shape[1])
        return torch.ops.bitsandbytes.dequantize_4bit(
            quantized.view(torch.uint8), scale, NF4_BLOCK, "nf4", shape, dtype
        )
    if kind.startswith("gguf:"):
        return _from_ggml(quantized.view(torch.uint8), kind.removeprefix("gguf:")).to(dtype)
    values = quantized.view(torch.int8).float()
    if scale is not None:
        values = values * scale
    with torch.autocast(quantized.device.type, enabled=False):
        values = rotated(values, quantization.rotation)
    return values.to(dtype)


def rotated(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Groups of `size` features times the Hadamard matrix, which is symmetric and its own inverse; 0: as they are."""
    if not size:
        return rows
    groups = rows.unflatten(1, (-1, size)) @ _hadamard(size, rows.device).to(rows.dtype)
    return groups.flatten(1)


def float8_values(quantized: torch.Tensor, kind: str, dtype: torch.dtype, by_table: bool) -> torch.Tensor:
    """What float8 codes stand for, in `dtype`; by a table of all of them where the device knows no float8."""
    if not by_table:
        return quantized.view(FLOAT8[kind]).to(dtype)
    table = torch.arange(256, dtype=torch.uint8).view(FLOAT8[kind]).to(dtype)
    return table.to(quantized.device)[quantized.view(torch.uint8).int()]


def _from_ggml(quantized: torch.Tensor, name: str) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]
    values = dequantize_functions[kind](quantized.reshape(-1, size), block, size)
    return values.reshape(quantized.shape[0], -1)


@lru_cache(maxsize=8)
def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    """The regular Hadamard matrix of a size that is a power of 4, scaled to be orthogonal: the Kronecker powers of one
    4 x 4 matrix (ConvRot, as comfy-kitchen builds it)."""
    base = torch.tensor(
        [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32, device=device
    )
    matrix = base
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, base)
    return matrix / size**0.5
