"""Activation checkpointing per block, as a plan asks, with the blocks' inputs offloaded to host memory."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..modules import blocks_of
from .plan import Plan

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""The fused kernels behind scaled_dot_product_attention, as torch names them."""


SAVED_OPS = {getattr(torch.ops.aten, name).default for name in ATTENTION if hasattr(torch.ops.aten, name)}


# From torch 2.14 on `checkpoint` asks whether saved-tensor hooks see its saved outputs; before, they never did.
HOOKS_PASSED_BY = (
    {"respect_saved_tensors_hooks": False}
    if "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters
    else {}
)


def checkpoint_blocks(transformer: nn.Module, plan: Plan) -> None:
    """Set each block's activation checkpointing by the plan.

    A streamed block must be checkpointed: its weights have left the device by its backward pass.
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
        call = partial(run_checkpointed, selective=mode == "selective")
        return call(block, *args) if host is None else host.run(call, block, *args)

    cast("ModelMixin", transformer).enable_gradient_checkpointing(run)


def run_checkpointed(block: nn.Module, *args: Any, selective: bool) -> Any:
    """Run the block and recompute it in its backward pass; `selective` saves the attention output."""
    options: dict[str, Any] = dict(HOOKS_PASSED_BY)
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
    # No random state is restored: blocks have no dropout.
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


class HostInputs:
    """Offloads the inputs of checkpointed blocks to host memory and prefetches them for the backward pass."""

    def __init__(self) -> None:
        self._newest: weakref.ref[_Inputs] | None = None
        self._copies: torch.cuda.Stream | None = None

    def run(self, call: Callable[..., Any], block: nn.Module, *args: Any) -> Any:
        """Run call(block, *args), which saves its inputs and nothing else for the backward pass."""
        if self._copies is None and args[0].device.type == "cuda":
            self._copies = torch.cuda.Stream(args[0].device)
        inputs = _Inputs(self._copies, self._newest)
        self._newest = weakref.ref(inputs)
        with torch.autograd.graph.saved_tensors_hooks(inputs.pack, _unpack):
            return call(block, *args)


class _Inputs:
    """Inputs of one checkpointed block. The autograd graph owns them, so they refer to each other weakly."""

    def __init__(self, copies: torch.cuda.Stream | None, earlier: weakref.ref[_Inputs] | None) -> None:
        self.copies = copies
        self.earlier = earlier
        self.host: list[torch.Tensor] = []
        self.fetched: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_Inputs, int]:
        """Copy tokens [B, L, D] of any dtype to host memory; vectors and masks stay on the device."""
        if tensor.ndim < 3:
            return tensor.detach()
        self.device = tensor.device
        self.host.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.copies is not None))
        self._copy([(self.host[-1], tensor.detach())])
        return self, len(self.host) - 1

    def fetch(self) -> None:
        """Start copying the inputs to the device."""
        self.fetched = {index: torch.empty_like(host, device=self.device) for index, host in enumerate(self.host)}
        self._copy([(tensor, self.host[index]) for index, tensor in self.fetched.items()])

    def pop(self, index: int) -> torch.Tensor:
        """Return an input [B, L, D] on the device in its own dtype, and start copying those of the block before."""
        if index not in self.fetched:
            self.fetch()
        if self.copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)
        earlier = self.earlier() if self.earlier is not None else None
        if earlier is not None and not earlier.fetched:
            earlier.fetch()
        return self.fetched.pop(index)

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy between host and device after all kernels enqueued so far."""
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
    return inputs.pop(index)
