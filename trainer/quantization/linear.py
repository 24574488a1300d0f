"""The frozen Linear on codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .formats import Quantization, QuantizedWeight, dequantize
from .matmul import input_gradient, product


class QuantizedLinear(nn.Linear):
    """A frozen Linear on stored codes. `weight` holds the codes as whole numbers, so that no cast of a module to
    another number format changes them."""

    integer: bool
    """Multiply the codes with quantized inputs, where their format and the shapes allow it."""

    def __init__(self, weight: QuantizedWeight, in_features: int, bias: torch.Tensor | None) -> None:
        super().__init__(in_features, weight.codes.shape[0], bias=False, device="meta")
        # int8 of all whole numbers: transformers' T5 casts its input to the dtype of any other weight.
        self.weight = nn.Parameter(weight.codes.view(torch.int8), requires_grad=False)
        self.quantization = weight.quantization
        self.integer = False
        self.register_buffer("scale", weight.scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's values [out, in] in `dtype`."""
        return dequantize(self.weight, self.scale, self.quantization, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _FrozenProduct.apply(
            input, computation_dtype(input), self.weight, self.scale, self.quantization, self.integer, self.bias
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.quantization.format}"


def computation_dtype(input: torch.Tensor) -> torch.dtype:
    """The number format in which a layer multiplies this input: autocast's, or its own."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype


class _FrozenProduct(torch.autograd.Function):
    """input @ weight.T + bias, where only the input has a gradient; what is saved for it is the codes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        dtype: torch.dtype,
        codes: torch.Tensor,
        scale: torch.Tensor | None,
        quantization: Quantization,
        integer: bool,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.input_dtype, ctx.quantization, ctx.integer = input.dtype, quantization, integer
        rows = input.reshape(-1, input.shape[-1]).to(dtype)
        result = product(rows, codes, scale, quantization, integer, None if bias is None else bias.to(dtype))
        return result.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        result = input_gradient(rows, codes, scale, ctx.quantization, ctx.integer).to(ctx.input_dtype)
        return result.view(*gradient.shape[:-1], -1), None, None, None, None, None, None


def set_integer_products(module: nn.Module, on: bool) -> None:
    """Whether the quantized layers inside multiply their codes with quantized inputs: see `products`."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.integer = on


def dequantize_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every QuantizedLinear inside by a Linear with its values."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(layer.dequantized(dtype), requires_grad=False)
            plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            module.set_submodule(name, plain)
