"""The table of quantized formats, and a quantized weight.

`FORMATS` is the one place that knows the formats: quantizing, matmuls, memory estimates, files and device checks look
their facts up here. A new format is one row, with its kernels.

torchao quantizes too, but its dynamic int8 overrides F.linear above autograd: the gradients of a LoRA on Flux then have
a cosine of 0.03 with the exact ones, without an error. The layers here reach 0.9997 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..config.settings import Precision
from .kernels import (
    NF4_BLOCK,
    dequantize_float8,
    dequantize_ggml,
    dequantize_int8,
    dequantize_nf4,
    quantize_nf4,
    quantize_rows,
    rotate,
)

BITSANDBYTES = "bitsandbytes>=0.46"
"""Requirement for nf4 and 8-bit Adam. 0.46 is the first with `torch.ops.bitsandbytes.dequantize_4bit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of quantized weights [out, in]."""

    name: str
    """ComfyUI's name in the markers of a file where it has one; `gguf:` and ggml's name for GGUF."""
    storage_dtype: torch.dtype
    """The dtype of the quantized values; uint8 for packed bytes."""
    bits: float
    """Bits a value takes, with the scales of blocks and without those of rows."""
    dequantize: Callable[[torch.Tensor, torch.Tensor | None, torch.dtype], torch.Tensor]
    """(quantized, float32 scale or None, dtype) -> values [out, in] in dtype. `quantized` has the storage dtype or is
    its bytes."""
    precision: Precision | None = None
    """The `precision` setting that quantizes to this format; None: it only comes from files."""
    quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    """Weight [out, in] float -> quantized values in the storage dtype, and their float32 scales."""
    row_scales: bool = False
    """`quantize` makes one float32 scale a row, [out, 1]."""
    matmul_multiple: int | None = None
    """Divisor of both sides of a weight that allows a matmul in the storage dtype; None: there is none."""
    capability: tuple[int, int] | None = None
    """NVIDIA compute capability that a matmul in the storage dtype needs."""
    package: str | None = None
    """Requirement, as pip takes it, of the optional package that holds the kernels."""
    file_dtype: str | None = None
    """dtype of the weight in a single file's header: safetensors' name, or `GGUF:` and ggml's; None: no single file
    carries it. Weights of a dtype without a marker are of the first format that has it."""
    needs_scale: bool = False
    """A weight of a file without a scale is damaged."""

    def runs_on(self, capability: tuple[int, int] | None) -> bool:
        """Tell whether an NVIDIA GPU of this compute capability multiplies in the storage dtype; None: not known, and
        then only whether the format can be multiplied at all."""
        if self.matmul_multiple is None:
            return False
        return capability is None or self.capability is None or capability >= self.capability

    def weight_bytes(self, weight: torch.Tensor) -> int:
        """Bytes that `quantize` makes of a weight [out, in] of any dtype, which may be without storage."""
        scales = len(weight) * torch.float32.itemsize if self.row_scales else 0
        return int(weight.numel() * self.bits / 8) + scales


def _gguf(ggml_type: str, values: int, size: int) -> Format:
    """The row of a ggml type whose blocks of `values` values take `size` bytes."""
    return Format(
        name=f"gguf:{ggml_type}",
        storage_dtype=torch.uint8,
        bits=8 * size / values,
        dequantize=partial(dequantize_ggml, ggml_type),
        package="gguf",
        file_dtype=f"GGUF:{ggml_type}",
    )


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="int8_tensorwise",
            precision="int8",
            storage_dtype=torch.int8,
            bits=8,
            quantize=partial(quantize_rows, dtype=torch.int8),
            dequantize=dequantize_int8,
            row_scales=True,
            matmul_multiple=8,
            capability=(8, 0),
            file_dtype="I8",
            needs_scale=True,
        ),
        Format(
            name="float8_e4m3fn",
            precision="fp8",
            storage_dtype=torch.float8_e4m3fn,
            bits=8,
            quantize=partial(quantize_rows, dtype=torch.float8_e4m3fn),
            dequantize=partial(dequantize_float8, torch.float8_e4m3fn),
            row_scales=True,
            matmul_multiple=16,
            capability=(8, 9),
            file_dtype="F8_E4M3",
        ),
        Format(
            name="float8_e5m2",
            storage_dtype=torch.float8_e5m2,
            bits=8,
            dequantize=partial(dequantize_float8, torch.float8_e5m2),
            file_dtype="F8_E5M2",
        ),
        Format(
            name="nf4",
            precision="nf4",
            storage_dtype=torch.uint8,
            bits=4 + 32 / NF4_BLOCK,
            quantize=quantize_nf4,
            dequantize=dequantize_nf4,
            package=BITSANDBYTES,
        ),
        # Values and bytes of a block as in gguf's GGML_QUANT_SIZES; the types that diffusers dequantizes.
        _gguf("BF16", 1, 2),
        _gguf("Q8_0", 32, 34),
        _gguf("Q5_1", 32, 24),
        _gguf("Q5_0", 32, 22),
        _gguf("Q4_1", 32, 20),
        _gguf("Q4_0", 32, 18),
        _gguf("Q6_K", 256, 210),
        _gguf("Q5_K", 256, 176),
        _gguf("Q4_K", 256, 144),
        _gguf("Q3_K", 256, 110),
        _gguf("Q2_K", 256, 84),
        _gguf("IQ4_NL", 32, 18),
        _gguf("IQ4_XS", 256, 136),
    )
}
"""Every format by its name. Matmul multiples are what `torch._int_mm` and `torch._scaled_mm` ask of a matrix's sides;
fp8 tensor cores come with Ada (8.9); that int8 is tried from Ampere (8.0) on, not from Turing, is a judgement."""


def format_of(precision: Precision | None) -> Format | None:
    """The format that a `precision` setting quantizes to; None for fp32, bf16 and None."""
    return next((row for row in FORMATS.values() if precision and row.precision == precision), None)


@dataclass(frozen=True, slots=True)
class Quantization:
    """The way that a weight is quantized."""

    format: str
    """Name of its row in `FORMATS`."""
    rotation: int = 0
    """Size of the Hadamard matrix that groups of input features were multiplied by ("convrot"); 0: none."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in its stored form."""

    quantized: torch.Tensor
    """Values in their storage dtype [out, in], or uint8 [out, bytes] where they are packed (nf4, GGUF)."""
    scale: torch.Tensor | None
    """float32: scalar, one for each row [out, 1], or flat with one for each block (nf4); None: 1."""
    quantization: Quantization

    def split(self, rows: Sequence[int]) -> list[QuantizedWeight]:
        """Split into blocks of that many consecutive rows."""
        quantized = self.quantized.split(list(rows))
        scales: Sequence[torch.Tensor | None] = [self.scale] * len(quantized)
        if self.scale is not None and self.scale.numel() > 1:
            scales = self.scale.reshape(-1, 1).split(list(rows))
        return [QuantizedWeight(q, s, self.quantization) for q, s in zip(quantized, scales, strict=True)]

    def clone(self) -> QuantizedWeight:
        """Copy the tensors."""
        scale = None if self.scale is None else self.scale.clone()
        return QuantizedWeight(self.quantized.clone(), scale, self.quantization)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantize: values [out, in] in `dtype`."""
        return dequantize(self.quantized, self.scale, self.quantization, dtype)


def dequantize(
    quantized: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization, dtype: torch.dtype
) -> torch.Tensor:
    """Dequantize to values [out, in] in `dtype`. `quantized` is in its storage dtype or its bytes as int8 or uint8,
    `scale` float32 or None, as in `QuantizedWeight`."""
    kernel = FORMATS[quantization.format].dequantize
    if not quantization.rotation:
        return kernel(quantized, scale, dtype)
    values = kernel(quantized, scale, torch.float32)
    with torch.autocast(quantized.device.type, enabled=False):
        return rotate(values, quantization.rotation).to(dtype)
