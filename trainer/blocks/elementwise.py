"""The elementwise work of a block, between its matmuls and attention.

Each function is computed in one of two ways. Where `compiled.fuses` says so it is one kernel forward and one backward,
in float32 within, rounded once; what it saves for the backward pass are its inputs, most of which live anyway.
Everywhere else it is the operations of diffusers' blocks in their order, so that values and gradients are theirs bit
for bit. The two differ by the roundings of the dtype that the second has after each operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..compiled import compiled, fuses

Optional = torch.Tensor | None


def norm_modulate(
    norm: nn.LayerNorm, hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute LayerNorm(hidden) * (1 + scale) + shift of `hidden` [B, L, D] with `scale` and `shift` [B, D].

    Returns `hidden`, for the residual connection, and the result, both [B, L, D] in the dtype of `hidden`: the
    gradients of both are added in the backward kernel.
    """
    if not fuses(hidden) or scale.requires_grad or shift.requires_grad:
        return hidden, norm(hidden) * (1 + scale[:, None]) + shift[:, None]
    return _NormModulate.apply(hidden, scale, shift, norm.eps)


def gated_norm_modulate(
    norm: nn.LayerNorm,
    hidden: torch.Tensor,
    gate: torch.Tensor,
    output: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add gate * output to `hidden`, both [B, L, D], and compute `norm_modulate` of the sum; `gate`, `scale` and
    `shift` are [B, D]. Returns the sum and the result, both [B, L, D] in the dtype of `hidden`."""
    if not fuses(hidden) or gate.requires_grad or scale.requires_grad or shift.requires_grad:
        return norm_modulate(norm, gated_residual(hidden, gate, output), scale, shift)
    return _GatedNormModulate.apply(hidden, gate, output, scale, shift, norm.eps)


def gated_residual(hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Compute hidden + gate * output: [B, L, D] of `hidden` and `output` [B, L, D] and `gate` [B, D], of one dtype."""
    if not fuses(hidden) or gate.requires_grad:
        return hidden + gate[:, None] * output
    return _GatedResidual.apply(hidden, gate, output)


def join_gelu(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Join `first` [B, L, D] and GELU (tanh) of `second` [B, L, E] of the same dtype: [B, L, D + E]."""
    if not fuses(first):
        return torch.cat([first, F.gelu(second, approximate="tanh")], dim=2)
    return _JoinGelu.apply(first, second)


class _NormModulate(torch.autograd.Function):
    """`norm_modulate` in one kernel, with gradients for `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, scale)
        ctx.eps = eps
        return hidden, _norm_modulate(hidden, scale, shift, eps)

    @staticmethod
    def backward(ctx: Any, residual: Optional, gradient: Optional) -> tuple[Optional, ...]:
        hidden, scale = ctx.saved_tensors
        if gradient is None:
            return residual, None, None, None
        return _norm_modulate_grad(gradient, residual, hidden, scale, ctx.eps), None, None, None


class _GatedNormModulate(torch.autograd.Function):
    """`gated_norm_modulate` in one kernel, with gradients for `hidden` and `output`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        gate: torch.Tensor,
        output: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        total, result = _gated_norm_modulate(hidden, gate, output, scale, shift, eps)
        ctx.save_for_backward(total, gate, scale)
        ctx.eps = eps
        return total, result

    @staticmethod
    def backward(ctx: Any, residual: Optional, gradient: Optional) -> tuple[Optional, ...]:
        total, gate, scale = ctx.saved_tensors
        if gradient is not None:
            residual, gated = _gated_norm_modulate_grad(gradient, residual, total, gate, scale, ctx.eps)
        else:
            gated = None if residual is None else _gated(residual, gate)
        return residual, None, gated, None, None, None


class _GatedResidual(torch.autograd.Function):
    """`gated_residual` in one kernel, with gradients for `hidden` and `output`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate)
        return _gated_residual(hidden, gate, output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        (gate,) = ctx.saved_tensors
        return gradient, None, _gated(gradient, gate)


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


@compiled
def _join_gelu(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, F.gelu(second, approximate="tanh")], dim=2)


@compiled
def _join_gelu_grad(gradient: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    own = gradient[..., gradient.shape[-1] - second.shape[-1] :]
    return torch.ops.aten.gelu_backward(own, second, approximate="tanh")


@compiled
def _norm_modulate(hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    normed = _normed(hidden.float(), eps)[0]
    return (normed * (1 + scale[:, None].float()) + shift[:, None].float()).to(hidden.dtype)


@compiled
def _norm_modulate_grad(
    gradient: torch.Tensor, residual: Optional, hidden: torch.Tensor, scale: torch.Tensor, eps: float
) -> torch.Tensor:
    return _norm_grad(gradient, residual, hidden, scale, eps).to(hidden.dtype)


@compiled
def _gated_norm_modulate(
    hidden: torch.Tensor,
    gate: torch.Tensor,
    output: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = (hidden.float() + gate[:, None].float() * output.float()).to(hidden.dtype)
    normed = _normed(total.float(), eps)[0]
    return total, (normed * (1 + scale[:, None].float()) + shift[:, None].float()).to(hidden.dtype)


@compiled
def _gated_norm_modulate_grad(
    gradient: torch.Tensor,
    residual: Optional,
    total: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    result = _norm_grad(gradient, residual, total, scale, eps)
    return result.to(total.dtype), (result * gate[:, None].float()).to(total.dtype)


@compiled
def _gated_residual(hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return (hidden.float() + gate[:, None].float() * output.float()).to(hidden.dtype)


@compiled
def _gated(gradient: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return gradient * gate[:, None]


def _normed(wide: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm without weights of [..., D] float32, and the reciprocal standard deviation [..., 1]."""
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    factor = torch.rsqrt(variance + eps)
    return (wide - mean) * factor, factor


def _norm_grad(
    gradient: torch.Tensor, residual: Optional, hidden: torch.Tensor, scale: torch.Tensor, eps: float
) -> torch.Tensor:
    """Gradient of `hidden` [B, L, D], float32, from those of `norm_modulate`'s two results."""
    normed, factor = _normed(hidden.float(), eps)
    scaled = gradient.float() * (1 + scale[:, None].float())
    along = (scaled * normed).mean(-1, keepdim=True)
    result = factor * (scaled - scaled.mean(-1, keepdim=True) - normed * along)
    return result if residual is None else result + residual.float()
