"""The activations of a block's MLP, GELU and SwiGLU, computed in one of two ways as the functions of `elementwise`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ..compiled import compiled, fuses


def join_gelu(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Join `first` [B, L, D] and GELU (tanh) of `second` [B, L, E] of the same dtype: [B, L, D + E]."""
    if not fuses(first):
        return torch.cat([first, F.gelu(second, approximate="tanh")], dim=2)
    return _JoinGelu.apply(first, second)


def swiglu(wide: torch.Tensor) -> torch.Tensor:
    """Compute silu(first half) * second half of `wide` [B, L, 2 * E] of any float dtype: [B, L, E] of it."""
    if not fuses(wide):
        gate, value = wide.chunk(2, dim=-1)
        return F.silu(gate) * value
    return _Swiglu.apply(wide)


def join_swiglu(first: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Join `first` [B, L, D] and `swiglu` of `wide` [B, L, 2 * E] of the same dtype: [B, L, D + E]."""
    if not fuses(first):
        return torch.cat([first, swiglu(wide)], dim=2)
    return _JoinSwiglu.apply(first, wide)


class _JoinGelu(torch.autograd.Function):
    """`join_gelu` without a tensor between."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(second)
        ctx.width = first.shape[-1]
        return _join_gelu(first, second)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (second,) = ctx.saved_tensors
        return gradient[..., : ctx.width], _join_gelu_grad(gradient, second)


class _Swiglu(torch.autograd.Function):
    """`swiglu` in one kernel."""

    @staticmethod
    def forward(ctx: Any, wide: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(wide)
        return _swiglu(wide)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (wide,) = ctx.saved_tensors
        return _swiglu_grad(gradient, wide)


class _JoinSwiglu(torch.autograd.Function):
    """`join_swiglu` without a tensor between."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(wide)
        ctx.width = first.shape[-1]
        return _join_swiglu(first, wide)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (wide,) = ctx.saved_tensors
        return gradient[..., : ctx.width], _swiglu_grad(gradient[..., ctx.width :], wide)


@compiled
def _join_gelu(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, F.gelu(second, approximate="tanh")], dim=2)


@compiled
def _join_gelu_grad(gradient: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    own = gradient[..., gradient.shape[-1] - second.shape[-1] :]
    return torch.ops.aten.gelu_backward(own, second, approximate="tanh")


@compiled
def _swiglu(wide: torch.Tensor) -> torch.Tensor:
    gate, value = wide.float().chunk(2, dim=-1)
    return (F.silu(gate) * value).to(wide.dtype)


@compiled
def _join_swiglu(first: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    gate, value = wide.float().chunk(2, dim=-1)
    return torch.cat([first, (F.silu(gate) * value).to(first.dtype)], dim=2)


@compiled
def _swiglu_grad(gradient: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Gradient of `wide` [B, L, 2 * E] in its dtype, from that of `swiglu` [B, L, E]."""
    gate, value = wide.float().chunk(2, dim=-1)
    own, sigmoid = gradient.float(), torch.sigmoid(gate)
    gate_grad = own * value * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([gate_grad, own * gate * sigmoid], dim=-1).to(wide.dtype)
