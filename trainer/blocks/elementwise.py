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

from ..compiled import compiled, fuses

Optional = torch.Tensor | None


def norm_modulate(
    norm: nn.LayerNorm, hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, row: Optional = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute LayerNorm(hidden) * (1 + scale) + shift of `hidden` [B, L, D] with `scale` and `shift` [B, D], or [2B, D]
    with `row` [B, L, 1]: see `per_token`.

    Returns `hidden`, for the residual connection, and the result, both [B, L, D] in the dtype of `hidden`: the
    gradients of both are added in the backward kernel.
    """
    if not fuses(hidden) or scale.requires_grad or shift.requires_grad:
        return hidden, norm(hidden) * (1 + per_token(scale, row)) + per_token(shift, row)
    return _NormModulate.apply(hidden, scale, shift, norm.eps, row)


def gated_norm_modulate(
    norm: nn.LayerNorm,
    hidden: torch.Tensor,
    gate: torch.Tensor,
    output: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    row: Optional = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add gate * output to `hidden`, both [B, L, D], and compute `norm_modulate` of the sum; `gate`, `scale` and
    `shift` are [B, D], or [2B, D] with `row` [B, L, 1]. Returns the sum and the result, both [B, L, D] in the dtype of
    `hidden`."""
    if not fuses(hidden) or gate.requires_grad or scale.requires_grad or shift.requires_grad:
        return norm_modulate(norm, gated_residual(hidden, gate, output, row), scale, shift, row)
    return _GatedNormModulate.apply(hidden, gate, output, scale, shift, norm.eps, row)


def gated_residual(
    hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor, row: Optional = None
) -> torch.Tensor:
    """Compute hidden + gate * output: [B, L, D] of `hidden` and `output` [B, L, D] and `gate` [B, D], or [2B, D] with
    `row` [B, L, 1], of one dtype."""
    if not fuses(hidden) or gate.requires_grad:
        return hidden + per_token(gate, row) * output
    return _GatedResidual.apply(hidden, gate, output, row)


def per_token(values: torch.Tensor, row: Optional) -> torch.Tensor:
    """Broadcast `values` [B, D] over the tokens, [B, 1, D] of the same dtype.

    With `row` [B, L, 1] int, `values` is [2B, D], and [B, L, D] is returned: its first B rows for the tokens whose row
    is 0, the others for those whose row is 1.
    """
    if row is None:
        return values[:, None]
    first, second = values[:, None].chunk(2)
    return torch.where(row == 0, first, second)


class _NormModulate(torch.autograd.Function):
    """`norm_modulate` in one kernel, with gradients for `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, row: Optional
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, scale, row)
        ctx.eps = eps
        return hidden, _norm_modulate(hidden, scale, shift, eps, row)

    @staticmethod
    def backward(ctx: Any, residual: Optional, gradient: Optional) -> tuple[Optional, ...]:
        hidden, scale, row = ctx.saved_tensors
        if gradient is None:
            return residual, None, None, None, None
        return _norm_modulate_grad(gradient, residual, hidden, scale, ctx.eps, row), None, None, None, None


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
        row: Optional,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        total, result = _gated_norm_modulate(hidden, gate, output, scale, shift, eps, row)
        ctx.save_for_backward(total, gate, scale, row)
        ctx.eps = eps
        return total, result

    @staticmethod
    def backward(ctx: Any, residual: Optional, gradient: Optional) -> tuple[Optional, ...]:
        total, gate, scale, row = ctx.saved_tensors
        if gradient is not None:
            residual, gated = _gated_norm_modulate_grad(gradient, residual, total, gate, scale, ctx.eps, row)
        else:
            gated = None if residual is None else _gated(residual, gate, row)
        return residual, None, gated, None, None, None, None


class _GatedResidual(torch.autograd.Function):
    """`gated_residual` in one kernel, with gradients for `hidden` and `output`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor, row: Optional
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, row)
        return _gated_residual(hidden, gate, output, row)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, None]:
        gate, row = ctx.saved_tensors
        return gradient, None, _gated(gradient, gate, row), None


@compiled
def _norm_modulate(
    hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, row: Optional
) -> torch.Tensor:
    normed = _normed(hidden.float(), eps)[0]
    return (normed * (1 + per_token(scale, row).float()) + per_token(shift, row).float()).to(hidden.dtype)


@compiled
def _norm_modulate_grad(
    gradient: torch.Tensor,
    residual: Optional,
    hidden: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    row: Optional,
) -> torch.Tensor:
    return _norm_grad(gradient, residual, hidden, scale, eps, row).to(hidden.dtype)


@compiled
def _gated_norm_modulate(
    hidden: torch.Tensor,
    gate: torch.Tensor,
    output: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    row: Optional,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = (hidden.float() + per_token(gate, row).float() * output.float()).to(hidden.dtype)
    normed = _normed(total.float(), eps)[0]
    return total, (normed * (1 + per_token(scale, row).float()) + per_token(shift, row).float()).to(hidden.dtype)


@compiled
def _gated_norm_modulate_grad(
    gradient: torch.Tensor,
    residual: Optional,
    total: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    row: Optional,
) -> tuple[torch.Tensor, torch.Tensor]:
    result = _norm_grad(gradient, residual, total, scale, eps, row)
    return result.to(total.dtype), (result * per_token(gate, row).float()).to(total.dtype)


@compiled
def _gated_residual(hidden: torch.Tensor, gate: torch.Tensor, output: torch.Tensor, row: Optional) -> torch.Tensor:
    return (hidden.float() + per_token(gate, row).float() * output.float()).to(hidden.dtype)


@compiled
def _gated(gradient: torch.Tensor, gate: torch.Tensor, row: Optional) -> torch.Tensor:
    return gradient * per_token(gate, row)


def _normed(wide: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm without weights of [..., D] float32, and the reciprocal standard deviation [..., 1]."""
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    factor = torch.rsqrt(variance + eps)
    return (wide - mean) * factor, factor


def _norm_grad(
    gradient: torch.Tensor,
    residual: Optional,
    hidden: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    row: Optional,
) -> torch.Tensor:
    """Gradient of `hidden` [B, L, D], float32, from those of `norm_modulate`'s two results."""
    normed, factor = _normed(hidden.float(), eps)
    scaled = gradient.float() * (1 + per_token(scale, row).float())
    along = (scaled * normed).mean(-1, keepdim=True)
    result = factor * (scaled - scaled.mean(-1, keepdim=True) - normed * along)
    return result if residual is None else result + residual.float()
