"""Linear layers whose frozen weights stay as a quantized file has them: fp8, int8 or GGUF blocks.

Every layer keeps the stored codes alone, also for the backward pass; a weight in the format of the computation exists
only while it is multiplied. Dequantization repeats ComfyUI's arithmetic to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a weight's codes are to be read."""

    format: str
    """`float8_e4m3fn`, `float8_e5m2`, `int8_tensorwise`, or `gguf:` and ggml's name of the type."""
    rotation: int = 0
    """Size of the Hadamard matrix that was multiplied on groups of input features ("convrot"); 0: none."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in its stored form."""

    codes: torch.Tensor
    """The weight in its storage dtype, or uint8 [out, bytes] for GGUF."""
    scale: torch.Tensor | None
    """float32, one number or one for each row [out, 1]; None: 1."""
    quantization: Quantization

    def split(self, rows: Sequence[int]) -> list[QuantizedWeight]:
        """Blocks of consecutive rows."""
        codes = self.codes.split(list(rows))
        scales = [self.scale] * len(codes)
        if self.scale is not None and self.scale.numel() > 1:
            scales = self.scale.reshape(-1, 1).split(list(rows))
        return [QuantizedWeight(c, s, self.quantization) for c, s in zip(codes, scales, strict=True)]

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's values [out, in] in `dtype`."""
        return dequantize(self.codes, self.scale, self.quantization, dtype)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor | None, quantization: Quantization, dtype: torch.dtype
) -> torch.Tensor:
    """The values of stored codes (in their storage dtype, or as bytes) in `dtype`."""
    kind = quantization.format
    if kind in FLOAT8:
        values = float8_values(codes, kind, dtype, by_table=codes.device.type == "mps")
        return values if scale is None else values * scale.to(dtype)
    if kind.startswith("gguf:"):
        return _from_ggml(codes.view(torch.uint8), kind.removeprefix("gguf:")).to(dtype)
    values = codes.view(torch.int8).float()
    if scale is not None:
        values = values * scale
    if size := quantization.rotation:
        rows, features = values.shape
        # Symmetric and its own inverse: the same product rotates back.
        values = (values.reshape(rows, features // size, size) @ _hadamard(size, values.device)).reshape(rows, features)
    return values.to(dtype)


def float8_values(codes: torch.Tensor, kind: str, dtype: torch.dtype, by_table: bool) -> torch.Tensor:
    """What float8 codes stand for, in `dtype`; by a table of all of them where the device knows no float8."""
    if not by_table:
        return codes.view(FLOAT8[kind]).to(dtype)
    table = torch.arange(256, dtype=torch.uint8).view(FLOAT8[kind]).to(dtype)
    return table.to(codes.device)[codes.view(torch.uint8).int()]


def _from_ggml(codes: torch.Tensor, name: str) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]
    values = dequantize_functions[kind](codes.reshape(-1, size), block, size)
    return values.reshape(codes.shape[0], -1)


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


class QuantizedLinear(nn.Linear):
    """A frozen Linear on stored codes. `weight` holds the codes as whole numbers, so that no cast of a module to
    another number format changes them."""

    def __init__(self, weight: QuantizedWeight, in_features: int, bias: torch.Tensor | None) -> None:
        super().__init__(in_features, weight.codes.shape[0], bias=False, device="meta")
        # int8 of all whole numbers: transformers' T5 casts its input to the dtype of any other weight.
        self.weight = nn.Parameter(weight.codes.view(torch.int8), requires_grad=False)
        self.quantization = weight.quantization
        self.register_buffer("scale", weight.scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's values [out, in] in `dtype`."""
        return dequantize(self.weight, self.scale, self.quantization, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _FrozenProduct.apply(input.to(dtype), self.weight, self.scale, self.quantization, bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.quantization.format}"


class _FrozenProduct(torch.autograd.Function):
    """input @ weight.T + bias, where only the input has a gradient; what is saved for it is the codes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor | None,
        quantization: Quantization,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.quantization = quantization
        return nn.functional.linear(input, dequantize(codes, scale, quantization, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ dequantize(codes, scale, ctx.quantization, gradient.dtype), None, None, None, None


def dequantize_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every QuantizedLinear inside by a Linear with its values."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(layer.dequantized(dtype), requires_grad=False)
            plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            module.set_submodule(name, plain)
