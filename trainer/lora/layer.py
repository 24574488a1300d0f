"""LoraLinear, a frozen Linear with trainable low-rank matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..compiled import fuses
from ..quantization.formats import Quantization
from ..quantization.linear import QuantizedLinear, computation_dtype
from ..quantization.matmul import FrozenWeight, linear, linear_input_grad
from .shared import shared_lora


class LoraLinear(nn.Module):
    """base_layer(x) + scale * lora_B(lora_A(x)) with a frozen, possibly quantized base; x is [..., in features].

    The matrices and their gradients are float32, the matrix products in the computation's dtype. PEFT's Linear is not
    used, because it keeps a float32 copy of a bf16 input for the backward pass; this one keeps only the input itself,
    its `rank` features and the base's weight as stored.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        self.lora_A = _matrix(base_layer.in_features, rank, base_layer.weight.device)
        self.lora_B = _matrix(rank, base_layer.out_features, base_layer.weight.device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [..., in features] of any float dtype to [..., out features] in the computation's dtype."""
        if fuses(input):
            return self.together((self,), input)[0]
        frozen = self.frozen
        return _LoraLinearFunction.apply(
            input,
            computation_dtype(input),
            self.lora_A.weight,
            self.lora_B.weight,
            self.scale,
            frozen.weight,
            frozen.scale,
            frozen.quantization,
            frozen.quantize_activations,
            self.base_layer.bias,
        )

    @property
    def frozen(self) -> FrozenWeight:
        """The base's weight and how to multiply it."""
        base = self.base_layer
        return base.frozen if isinstance(base, QuantizedLinear) else FrozenWeight(base.weight, None, None, False)

    @staticmethod
    def together(layers: Sequence[LoraLinear], input: torch.Tensor) -> list[torch.Tensor]:
        """Map one input [..., in features] by several layers, to [..., out features] of each in the same float dtype.
        They share one quantization of the input, and one product for all A matrices."""
        return list(shared_lora(layers, input))


@contextmanager
def without_lora(transformer: nn.Module) -> Iterator[None]:
    """Context in which the LoRA layers of a transformer compute what their base layers do."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLinear)]
    scales = [layer.scale for layer in layers]
    for layer in layers:
        layer.scale = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


def _matrix(inputs: int, outputs: int, device: torch.device) -> nn.Linear:
    """A Linear without bias with an uninitialized float32 weight."""
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32, device=device))
    return linear


class _LoraLinearFunction(torch.autograd.Function):
    """LoraLinear's forward pass, with gradients for the input and the two matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        dtype: torch.dtype,
        a: torch.Tensor,
        b: torch.Tensor,
        lora_scale: float,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        quantization: Quantization | None,
        quantize_activations: bool,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = input.reshape(-1, input.shape[-1]).to(dtype)
        features = rows @ a.to(dtype).t()
        frozen = FrozenWeight(weight, scale, quantization, quantize_activations)
        result = linear(frozen, rows, None if bias is None else bias.to(dtype))
        result.addmm_(features, (lora_scale * b).to(dtype).t())
        ctx.save_for_backward(input, features, a, b, weight, scale)
        ctx.lora_scale, ctx.quantization, ctx.quantize_activations = lora_scale, quantization, quantize_activations
        return result.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, features, a, b, weight, scale = ctx.saved_tensors
        dtype = features.dtype
        out_rows = gradient.reshape(-1, gradient.shape[-1])
        feature_gradient = out_rows @ (ctx.lora_scale * b).to(dtype)
        a_gradient = feature_gradient.t() @ input.reshape(-1, input.shape[-1]).to(dtype)
        b_gradient = out_rows.t() @ features
        input_grad = None
        if ctx.needs_input_grad[0]:
            frozen = FrozenWeight(weight, scale, ctx.quantization, ctx.quantize_activations)
            rows = linear_input_grad(frozen, out_rows)
            input_grad = rows.addmm_(feature_gradient, a.to(dtype)).view(input.shape).to(input.dtype)
        b_gradient = b_gradient.float().mul_(ctx.lora_scale)
        return input_grad, None, a_gradient.float(), b_gradient, None, None, None, None, None, None
