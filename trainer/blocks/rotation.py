"""Norm and rotation of queries and keys, written side by side for joint attention."""

from __future__ import annotations

from collections.abc import Sequence
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
    """`join_rotated` as one function, with gradients for queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, eps: float, table: torch.Tensor, streams: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(table, *tensors)
        ctx.eps, ctx.streams = eps, streams
        queries, keys, query_weights, key_weights = _groups(tensors, streams)
        return _join_rotated(queries, keys, query_weights, key_weights, table, eps)

    @staticmethod
    def backward(ctx: Any, query_grad: torch.Tensor, key_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        table, *tensors = ctx.saved_tensors
        queries, keys, *weights = _groups(tensors, ctx.streams)
        gradients = _join_rotated_grad(queries, keys, weights[0], weights[1], table, query_grad, key_grad, ctx.eps)
        return (None, None, None, *gradients, *[None] * (2 * ctx.streams))


def _groups(tensors: Sequence[torch.Tensor], streams: int) -> list[list[torch.Tensor]]:
    """Queries, keys, and the weights of both, each a list with one of each stream."""
    return [list(tensors[index * streams : (index + 1) * streams]) for index in range(4)]


@compiled
def _join_rotated(
    queries: list[torch.Tensor],
    keys: list[torch.Tensor],
    query_weights: list[torch.Tensor],
    key_weights: list[torch.Tensor],
    table: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    results: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    start = 0
    for index, query in enumerate(queries):
        own = table[:, start : start + query.shape[1]]
        results[0].append(_rotated(query, query_weights[index], own, eps).to(query.dtype))
        results[1].append(_rotated(keys[index], key_weights[index], own, eps).to(query.dtype))
        start += query.shape[1]
    return (results[0][0], results[1][0]) if len(queries) == 1 else (torch.cat(results[0], 1), torch.cat(results[1], 1))


@compiled
def _join_rotated_grad(
    queries: list[torch.Tensor],
    keys: list[torch.Tensor],
    query_weights: list[torch.Tensor],
    key_weights: list[torch.Tensor],
    table: torch.Tensor,
    query_grad: torch.Tensor,
    key_grad: torch.Tensor,
    eps: float,
) -> list[torch.Tensor]:
    """Gradients of all queries, then of all keys."""
    results: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    start = 0
    for index, query in enumerate(queries):
        end = start + query.shape[1]
        own = table[:, start:end]
        results[0].append(_rotated_grad(query, query_weights[index], own, query_grad[:, start:end], eps))
        results[1].append(_rotated_grad(keys[index], key_weights[index], own, key_grad[:, start:end], eps))
        start = end
    return results[0] + results[1]


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
