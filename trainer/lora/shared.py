"""LoRA layers that have one input, computed together on a GPU: the input is read and quantized once for all.

Its results differ from those of `layer.LoraLinear` one by one by the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..quantization.formats import Quantization
from ..quantization.matmul import FrozenWeight, input_grad_with_low_rank, linears_with_low_rank

if TYPE_CHECKING:
    from .layer import LoraLinear


@dataclass(frozen=True, slots=True)
class _Layer:
    """Facts of a layer that its backward pass needs beside tensors."""

    lora_scale: float
    quantization: Quantization | None
    quantize_activations: bool

    def frozen(self, weight: torch.Tensor, scale: torch.Tensor | None) -> FrozenWeight:
        return FrozenWeight(weight, scale, self.quantization, self.quantize_activations)

    def scaled(self, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The transpose of B [out, rank] float32 times the LoRA's scale, [rank, out] in `dtype`."""
        return torch.mul(b.t(), self.lora_scale, out=torch.empty(b.t().shape, dtype=dtype, device=b.device))


def shared_lora(layers: Sequence[LoraLinear], input: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Map `input` [..., in features] of a float dtype by each layer: [..., out features] in the same dtype."""
    static, tensors = [], []
    for layer in layers:
        frozen = layer.frozen
        static.append(_Layer(layer.scale, frozen.quantization, frozen.quantize_activations))
        tensors += [layer.lora_A.weight, layer.lora_B.weight, frozen.weight, frozen.scale, layer.base_layer.bias]
    return _SharedLora.apply(static, input, *tensors)


class _SharedLora(torch.autograd.Function):
    """`shared_lora`, with gradients for the input and all matrices."""

    @staticmethod
    def forward(
        ctx: Any, layers: list[_Layer], input: torch.Tensor, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        a, b, weights, scales, biases = _columns(tensors, 5)
        dtype = input.dtype
        rows = input.reshape(-1, input.shape[-1])
        ctx.ranks = [len(matrix) for matrix in a]
        features = rows @ torch.cat(a).to(dtype).t()
        frozen = [layer.frozen(*each) for layer, *each in zip(layers, weights, scales, strict=True)]
        products = [
            (own, layer.scaled(matrix, dtype))
            for layer, matrix, own in zip(layers, b, features.split(ctx.ranks, dim=1), strict=True)
        ]
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
        results = linears_with_low_rank(list(zip(frozen, biases, strict=True)), rows, products)
        ctx.layers = layers
        ctx.save_for_backward(input, features, *a, *b, *weights, *scales)
        return tuple(result.view(*input.shape[:-1], -1) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        input, features, *tensors = ctx.saved_tensors
        a, b, weights, scales = (tensors[i * len(ctx.layers) : (i + 1) * len(ctx.layers)] for i in range(4))
        outputs = {i: each.reshape(-1, each.shape[-1]) for i, each in enumerate(gradients) if each is not None}
        rows, dtype = input.reshape(-1, input.shape[-1]), input.dtype
        own = features.split(ctx.ranks, dim=1)
        left = torch.cat([outputs[i] @ ctx.layers[i].scaled(b[i], dtype).t() for i in outputs], dim=1)
        a_grads = (left.t() @ rows).float().split([ctx.ranks[i] for i in outputs])
        result: list[torch.Tensor | None] = [None] * (5 * len(ctx.layers))
        for i, a_grad in zip(outputs, a_grads, strict=True):
            result[5 * i] = a_grad
            result[5 * i + 1] = (outputs[i].t() @ own[i]).float().mul_(ctx.layers[i].lora_scale)
        input_grad = None
        if ctx.needs_input_grad[1]:
            frozen = [ctx.layers[i].frozen(weights[i], scales[i]) for i in outputs]
            right = torch.cat([a[i] for i in outputs]).to(dtype)
            input_grad = input_grad_with_low_rank(frozen, list(outputs.values()), (left, right)).view(input.shape)
        return None, input_grad, *result


def _columns(values: Sequence[Any], count: int) -> list[list[Any]]:
    """Every `count`-th of the values, from each of the first `count` on."""
    return [list(values[index::count]) for index in range(count)]
