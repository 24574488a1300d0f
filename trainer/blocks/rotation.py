"""Norm and rotation of queries and keys, written side by side for joint attention."""

from __future__ import annotations

from typing import Any

import torch

from ..compiled import compiled


def rotary_tables(cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Build the table [2, L, D] float32 that `join_rotated` takes from cosines and sines [L, D / 2] float32, one for
    each pair of neighbouring channels."""
    table = torch.stack([torch.stack([cosine, cosine], -1), torch.stack([-sine, sine], -1)])
    return table.flatten(2).contiguous()


def join_rotated(
    queries: list[torch.Tensor],
    keys: list[torch.Tensor],
    query_weights: list[torch.Tensor],
    key_weights: list[torch.Tensor],
    table: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalize queries and keys [B, Li, H, D] of one or more streams (RMSNorm with weights [D]), rotate them by
    `table` [2, sum of Li, D] float32, and join them: two tensors [B, sum of Li, H, D] in their dtype."""
    return _JoinRotated.apply(eps, table, len(queries), *queries, *keys, *query_weights, *key_weights)


class _JoinRotated(torch.autograd.Function):
    """`join_rotated` in one kernel for each stream, with gradients for queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, eps: float, table: torch.Tensor, streams: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(table, *tensors)
        ctx.eps, ctx.streams = eps, streams
        batch, _, heads, width = tensors[0].shape
        shape = (batch, table.shape[1], heads, width)
        joined = tuple(torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device) for _ in range(2))
        for start, end, query, key, *weights in _streams(streams, tensors):
            targets = (part[:, start:end] for part in joined)
            _rotate_into(query, key, *weights, table[:, start:end], *targets, eps)
        return joined

    @staticmethod
    def backward(ctx: Any, query_grad: torch.Tensor, key_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        table, *tensors = ctx.saved_tensors
        queries, keys = [], []
        for start, end, query, key, *weights in _streams(ctx.streams, tensors):
            own = query_grad[:, start:end], key_grad[:, start:end]
            results = _rotate_grad(query, key, *weights, table[:, start:end], *own, ctx.eps)
            queries.append(results[0])
            keys.append(results[1])
        return (None, None, None, *queries, *keys, *[None] * (2 * ctx.streams))


def _streams(count: int, tensors: Any) -> list[tuple[int, int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Start and end of each stream in the joined tensors, its query, key, and their weights."""
    groups = zip(*(tensors[index * count : (index + 1) * count] for index in range(4)), strict=True)
    found, start = [], 0
    for group in groups:
        found.append((start, start + group[0].shape[1], *group))
        start += group[0].shape[1]
    return found


@compiled
def _rotate_into(
    query: torch.Tensor,
    key: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    query_target: torch.Tensor,
    key_target: torch.Tensor,
    eps: float,
) -> None:
    query_target.copy_(_rotated(query, query_weight, table, eps))
    key_target.copy_(_rotated(key, key_weight, table, eps))


@compiled
def _rotate_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    query_grad: torch.Tensor,
    key_grad: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        _rotated_grad(query, query_weight, table, query_grad, eps),
        _rotated_grad(key, key_weight, table, key_grad, eps),
    )


def _rotated(values: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, eps: float) -> torch.Tensor:
    wide = values.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return normed * table[0][:, None] + _swapped(normed) * table[1][:, None]


def _rotated_grad(
    values: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, gradient: torch.Tensor, eps: float
) -> torch.Tensor:
    wide, turned = values.float(), gradient.float()
    turned = turned * table[0][:, None] + _swapped(turned * table[1][:, None])
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed, scaled = wide * factor, turned * weight.float()
    return (factor * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))).to(values.dtype)


def _swapped(values: torch.Tensor) -> torch.Tensor:
    """Neighbouring channels of [..., D] exchanged, same dtype."""
    return values.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
