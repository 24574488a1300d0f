"""Attention of the blocks, whose output a checkpointed forward pass can keep for its recomputation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from .cpu_attention import tiled_attention, uses_tiles

ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""The fused kernels behind scaled_dot_product_attention, as torch names them."""


SAVED_OPS = {
    torch.ops.edit_trainer.tiled_attention.default,
    *(getattr(torch.ops.aten, name).default for name in ATTENTION if hasattr(torch.ops.aten, name)),
}


class _Running(threading.local):
    """The context in which attention of the running block is called; the backward pass has a thread of its own."""

    around: Callable[[], AbstractContextManager[Any]] | None = None


_running = _Running()


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, backend: Any
) -> torch.Tensor:
    """Compute attention of [B, L, H, D] tensors of one float dtype through diffusers' `backend`, None for its default:
    [B, L, H * D] in the dtype of `query`. `mask` is a bool tensor [B, 1, 1, L], False where keys are padding, or None.
    """
    around = None if torch.compiler.is_compiling() else _running.around
    with (around or nullcontext)():
        if backend is None and uses_tiles(query):
            output = tiled_attention(query, key, value, mask)
        else:
            output = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
    output = output.flatten(2, 3).to(query.dtype)
    return _DenseGradient.apply(output) if output.is_cuda else output


class _DenseGradient(torch.autograd.Function):
    """Makes the gradient dense: cuDNN's backward kernel must not see a part of a wider tensor, as the gradient of a
    concatenation is. A hook on the tensor would do, but is lost where blocks are compiled."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        """Return the tensor, of any shape and dtype."""
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient, of the same shape and dtype, in memory of its own if it is a part of another's."""
        return gradient.contiguous()


def keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Policy of selective checkpointing that saves the outputs of attention's kernels."""
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


class KeptAttention:
    """Keeps the outputs of one block's attention in its first run and gives them back in its second.

    torch's selective checkpointing does the same for a whole block, where its Python code sees every operation and
    takes as long as the operations themselves.
    """

    def __init__(self) -> None:
        self._contexts = iter(create_selective_checkpoint_contexts(keep_attention))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of a run of the block that calls `attend` once."""
        context = next(self._contexts, None)
        if context is None:
            raise RuntimeError("A checkpointed block was recomputed twice: run the forward pass again.")
        before, _running.around = _running.around, lambda: context
        try:
            yield
        finally:
            _running.around = before
