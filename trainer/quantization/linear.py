"""The frozen Linear on quantized values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..compiled import fuses
from .formats import FORMATS, Quantization, QuantizedWeight, dequantize
from .matmul import FrozenWeight, linear, linear_input_grad


class QuantizedLinear(nn.Linear):
    """A frozen Linear on quantized values.

    `weight` holds their bytes as int8, so that casting the module to another floating-point dtype leaves them alone.
    `scale` is float32, as in `QuantizedWeight`. The values are dequantized for each matmul and never saved for the
    backward pass.
    """

    scale: torch.Tensor | None
    """float32: scalar, [out, 1], or flat with one for each block; None: 1."""
    quantize_activations: bool
    """Quantize the inputs too and multiply in the storage dtype, where format and shapes allow it."""

    def __init__(self, weight: QuantizedWeight, in_features: int, bias: torch.Tensor | None) -> None:
        """`bias`: [out] in any floating-point dtype."""
        super().__init__(in_features, weight.quantized.shape[0], bias=False, device="meta")
        # int8 and not uint8: transformers' T5 casts its input to the dtype of a weight unless that is int8.
        self.weight = nn.Parameter(weight.quantized.view(torch.int8), requires_grad=False)
        self.quantization = weight.quantization
        self.quantize_activations = False
        self.register_buffer("scale", weight.scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def frozen(self) -> FrozenWeight:
        """The weight and how to multiply it."""
        return FrozenWeight(self.weight, self.scale, self.quantization, self.quantize_activations)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantize the weight: values [out, in] in `dtype`."""
        return dequantize(self.weight, self.scale, self.quantization, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply `input` [*, in] of any float dtype: [*, out] in `computation_dtype(input)`."""
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


def project(layers: Sequence[nn.Module], input: torch.Tensor) -> list[torch.Tensor]:
    """Call Linears that have one input: `input` [..., in] of any float dtype gives a [..., out] of each.

    Layers of one class with a method `together` share the work on their common input on a GPU.
    """
    kind = type(layers[0])
    together = getattr(kind, "together", None)
    if together is None or any(type(layer) is not kind for layer in layers) or not fuses(input):
        return [layer(input) for layer in layers]
    return together(layers, input)


def computation_dtype(input: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a layer multiplies `input` (any shape and dtype): autocast's, else the input's own."""
    kind = input.device.type
    autocasts = kind != "meta" and torch.is_autocast_enabled(kind)  # it knows no meta device
    return torch.get_autocast_dtype(kind) if autocasts else input.dtype


class _FrozenLinear(torch.autograd.Function):
    """input @ weight.T + bias with a gradient for the input alone; only the quantized weight is saved for it."""

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
        frozen = FrozenWeight(quantized, scale, quantization, quantize_activations)
        result = linear(frozen, rows, None if bias is None else bias.to(dtype))
        return result.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None, None]:
        quantized, scale = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        frozen = FrozenWeight(quantized, scale, ctx.quantization, ctx.quantize_activations)
        result = linear_input_grad(frozen, rows).to(ctx.input_dtype)
        return result.view(*gradient.shape[:-1], -1), None, None, None, None, None, None


def set_quantize_activations(module: nn.Module, on: bool, capability: tuple[int, int] | None = None) -> None:
    """Turn low-precision matmuls on or off in all quantized layers of `module`; see `matmul.linear`.

    A layer whose own format an NVIDIA GPU of this compute `capability` cannot multiply keeps them off; None: not known,
    all can. A file's layers may have other formats than the run's precision: fp8 on an RTX 30xx, whose int8 is fast.
    """
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.quantize_activations = on and FORMATS[layer.quantization.format].runs_on(capability)


def dequantize_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every QuantizedLinear of `module` by a plain Linear in `dtype`."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(layer.dequantized(dtype), requires_grad=False)
            if layer.bias is not None:
                plain.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            module.set_submodule(name, plain)
