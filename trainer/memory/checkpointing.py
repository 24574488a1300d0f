"""Checkpointing by budget: what each block keeps for its backward pass, and what it computes again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..modules import blocks_of
from .plan import Plan

ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""The fused kernels behind scaled_dot_product_attention, as torch names them."""


KEPT = {getattr(torch.ops.aten, name).default for name in ATTENTION if hasattr(torch.ops.aten, name)}


# From torch 2.14 on it asks for a decision; before, kept outputs always passed the hooks by.
HOOKS_PASSED_BY = (
    {"respect_saved_tensors_hooks": False}
    if "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters
    else {}
)


def checkpoint_blocks(transformer: nn.Module, plan: Plan) -> None:
    """Let the blocks keep for their backward pass what the plan says.

    A streamed block has to be computed again: its weights are gone by then.
    """
    modes = {id(block): plan.activation_checkpointing_of(index) for index, block in enumerate(blocks_of(transformer))}
    assert all(plan.activation_checkpointing_of(index) != "none" for index in plan.streamed), (
        "a streamed block keeps its weights"
    )
    if set(modes.values()) == {"none"}:
        return
    host = HostInputs() if plan.inputs_on_host else None

    def run(block: nn.Module, *args: Any) -> Any:
        mode = modes[id(block)]
        if mode == "none":
            return block(*args)
        call = partial(checkpointed, selective=mode == "selective")
        return call(block, *args) if host is None else host.saved(call, block, *args)

    transformer.enable_gradient_checkpointing(run)


def checkpointed(block: nn.Module, *args: Any, selective: bool) -> Any:
    """The block's output; in the backward pass it is computed again, `selective`: but for the attention's output."""
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)} if selective else {}
    # Nothing in a block is random.
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **contexts, **HOOKS_PASSED_BY)


def _keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


class HostInputs:
    """Keeps in host memory what checkpointed blocks are computed again from, and brings it back in time."""

    def __init__(self) -> None:
        self._newest: weakref.ref[_Inputs] | None = None
        self._copies: torch.cuda.Stream | None = None

    def saved(self, call: Callable[..., Any], block: nn.Module, *args: Any) -> Any:
        """call(block, *args), which saves its inputs, and nothing else, for the backward pass."""
        if self._copies is None and args[0].device.type == "cuda":
            self._copies = torch.cuda.Stream(args[0].device)
        inputs = _Inputs(self._copies, self._newest)
        self._newest = weakref.ref(inputs)
        with torch.autograd.graph.saved_tensors_hooks(inputs.pack, _unpack):
            return call(block, *args)


class _Inputs:
    """The inputs of one checkpointed block. The graph that saved them keeps them alive, so the links go by weakref."""

    def __init__(self, copies: torch.cuda.Stream | None, earlier: weakref.ref[_Inputs] | None) -> None:
        self.copies = copies
        self.earlier = earlier
        self.host: list[torch.Tensor] = []
        self.fetched: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_Inputs, int]:
        """Copy tokens [batch, length, width] to host memory; vectors and masks stay."""
        if tensor.ndim < 3:
            return tensor.detach()
        self.device = tensor.device
        self.host.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.copies is not None))
        self._copy([(self.host[-1], tensor.detach())])
        return self, len(self.host) - 1

    def fetch(self) -> None:
        """Begin to bring them back."""
        self.fetched = {index: torch.empty_like(host, device=self.device) for index, host in enumerate(self.host)}
        self._copy([(tensor, self.host[index]) for index, tensor in self.fetched.items()])

    def take(self, index: int) -> torch.Tensor:
        """One of them on the device; those of the block before are on their way when it is computed with."""
        if index not in self.fetched:
            self.fetch()
        if self.copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)
        earlier = self.earlier() if self.earlier is not None else None
        if earlier is not None and not earlier.fetched:
            earlier.fetch()
        return self.fetched.pop(index)

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy between host and device, once the device is done with what is enqueued so far."""
        if self.copies is None:
            for target, source in pairs:
                target.copy_(source)
            return
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
                (target if target.device == self.device else source).record_stream(self.copies)
            self.copied = self.copies.record_event()


def _unpack(packed: torch.Tensor | tuple[_Inputs, int]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    inputs, index = packed
    return inputs.take(index)
