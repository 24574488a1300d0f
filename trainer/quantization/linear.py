"""The frozen Linear on codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .formats import Quantization, QuantizedWeight, dequantize
from .matmul import linear, linear_input_grad


class QuantizedLinear(nn.Linear):
    """A frozen Linear on stored codes. `weight` holds the codes as whole numbers, so that no cast of a module to
    another number format changes them."""

    quantize_activations: bool
    """Multiply the codes with quantized inputs, where their format and the shapes allow it."""

    def __init__(self, weight: QuantizedWeight, in_features: int, bias: torch.Tensor | None) -> None:
        super().__init__(in_features, weight.quantized.shape[0], bias=False, device="meta")
        # int8 of all whole numbers: transformers' T5 casts its input to the dtype of any other weight.
        self.weight = nn.Parameter(weight.quantized.view(torch.int8), requires_grad=False)
        self.quantization = weight.quantization
        self.quantize_activations = False
        self.register_buffer("scale", weight.scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight's values [out, in] in `dtype`."""
        return dequantize(self.weight, self.scale, self.quantization, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _FrozenLinear.apply(
            input,
            computation_dtype(input),
            self.weight,
            self.scale,
            self.quantization,
            self.quantize_activations,
            self.bias,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.quantization.format}"


def computation_dtype(input: torch.Tensor) -> torch.dtype:
    """The number format in which a layer multiplies this input: autocast's, or its own."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype


class _FrozenLinear(torch.autograd.Function):
    """input @ weight.T + bias, where only the input has a gradient; what is saved for it is the codes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        dtype: torch.dtype,
        quantized: torch.Tensor,
        scale: torch.Tensor | None,
        quantization: Quantization,
        quantize_activations: bool,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(quantized, scale)
        ctx.input_dtype, ctx.quantization, ctx.quantize_activations = input.dtype, quantization, quantize_activations
        rows = input.reshape(-1, input.shape[-1]).to(dtype)
        result = linear(
            rows, quantized, scale, quantization, quantize_activations, None if bias is None else bias.to(dtype)
        )
        return result.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None, None]:
        quantized, scale = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        result = linear_input_grad(rows, quantized, scale, ctx.quantization, ctx.quantize_activations).to(
            ctx.input_dtype
        )
        return result.view(*gradient.shape[:-1], -1), None, None, None, None, None, None


def set_quantize_activations(module: nn.Module, on: bool) -> None:
    """Whether the quantized layers inside multiply their codes with quantized inputs: see `products`."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.quantize_activations = on


def dequantize_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every QuantizedLinear inside by a Linear with its values."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(layer.dequantized(dtype), requires_grad=False)
            plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            module.set_submodule(name, plain)
