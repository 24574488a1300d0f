"""Attention in bf16 on processors with bf16 units, as matmuls of tiles.

Own code, as torch's flash kernel for the CPU hardly uses these units: on two cores of an EPYC it takes 0.21 s forward
and 0.30 s backward for 12 heads of 2560 tokens, the matmuls 0.07 and 0.18 s (`tests/benchmarks/attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

TILE = 2**21
"""Scores of a tile. Measured: less or more by a factor of two changes the time of 1024 tokens or more by a tenth."""


def multiplies_bf16() -> bool:
    """Tell whether matmuls in bf16 are fast on this processor, but torch's flash kernel, written for AMX, is not."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") and not capabilities.get("amx_bf16"))


MULTIPLIES_BF16 = multiplies_bf16()


def uses_tiles(query: torch.Tensor) -> bool:
    """Tell whether attention of this tensor, of any shape and dtype, is computed in tiles."""
    return MULTIPLIES_BF16 and query.device.type == "cpu" and query.dtype == torch.bfloat16


@torch.library.custom_op("edit_trainer::tiled_attention", mutates_args=())
def tiled_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute attention of [B, L, H, D] bf16 tensors: [B, L, H, D] bf16. `mask` is a bool tensor [B, 1, 1, L], False
    where keys are padding, or None. An operator, so that selective checkpointing can keep its output."""
    output = torch.empty_like(query)
    for index, heads in _head_groups(query):
        queries, keys, values = (_of_heads(tensor, index, heads) for tensor in (query, key, value))
        queries *= _scale(queries)
        for rows in _row_tiles(queries):
            weights = _weights(queries[:, rows], keys, mask, index)
            output[index, rows, heads] = torch.bmm(weights, values).transpose(0, 1)
    return output


@tiled_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(query)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor | None, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    """Gradients of query, key and value; the attention weights are computed again."""
    query, key, value, mask = ctx.saved_tensors
    of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
    for index, heads in _head_groups(query):
        queries, keys, values, outer = (_of_heads(tensor, index, heads) for tensor in (query, key, value, gradient))
        queries *= _scale(queries)
        of_keys, of_values = (torch.zeros(keys.shape, dtype=torch.float32) for _ in range(2))
        for rows in _row_tiles(queries):
            weights = _weights(queries[:, rows], keys, mask, index)
            of_weights = torch.bmm(outer[:, rows], values.mT)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[index, rows, heads] = torch.bmm(of_scores, keys).mul_(_scale(queries)).transpose(0, 1)
            of_keys += torch.bmm(of_scores.mT, queries[:, rows])
            of_values += torch.bmm(weights.mT, outer[:, rows])
        of_key[index, :, heads] = of_keys.transpose(0, 1)
        of_value[index, :, heads] = of_values.transpose(0, 1)
    return of_query, of_key, of_value, None


tiled_attention.register_autograd(_backward, setup_context=_setup_context)


def _head_groups(query: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Yield example and heads of [B, L, H, D]: as many heads at once as have their scores in one tile."""
    batch, length, count, _ = query.shape
    together = max(1, TILE // length**2)
    for index in range(batch):
        for head in range(0, count, together):
            yield index, slice(head, head + together)


def _row_tiles(queries: torch.Tensor) -> Iterator[slice]:
    """Yield the queries of [h, L, D] whose scores make a tile."""
    length = queries.shape[1]
    rows = max(1, TILE // length)
    for row in range(0, length, rows):
        yield slice(row, row + rows)


def _of_heads(tensor: torch.Tensor, index: int, heads: slice) -> torch.Tensor:
    """Copy some heads of an example of [B, L, H, D] to [h, L, D]: matmuls of parts of a wider tensor take longer."""
    return tensor[index, :, heads].transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _weights(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, index: int) -> torch.Tensor:
    """Attention weights [h, l, L] bf16 of some scaled queries [h, l, D] and all keys [h, L, D] of an example."""
    scores = torch.bmm(queries, keys.mT)
    if mask is not None:
        scores.masked_fill_(~mask[index, 0], -torch.inf)
    return torch.softmax(scores, dim=-1)


def _scale(queries: torch.Tensor) -> float:
    return queries.shape[-1] ** -0.5
