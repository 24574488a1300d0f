"""Activation checkpointing per block, as a plan asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ..blocks.attention import KeptAttention, keep_attention
from ..modules import blocks_of
from .host_inputs import HostInputs
from .plan import Plan

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

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


def uncheckpoint_blocks(transformer: nn.Module) -> None:
    """Take back what `checkpoint_blocks` did, with the host memory that inputs of blocks have used."""
    model = cast("ModelMixin", transformer)
    if model.is_gradient_checkpointing:
        model.enable_gradient_checkpointing(run_plainly)
        model.disable_gradient_checkpointing()


def run_plainly(block: nn.Module, *args: Any) -> Any:
    """Run the block."""
    return block(*args)


def run_checkpointed(block: nn.Module, *args: Any, selective: bool) -> Any:
    """Run the block and recompute it in its backward pass; `selective` saves the attention output."""
    options: dict[str, Any] = dict(HOOKS_PASSED_BY)
    run: Callable[..., Any] = block
    if selective and getattr(block, "calls_attend", False):
        run = partial(_run_keeping, KeptAttention(), block)
    elif selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_attention)
    # No random state is restored: blocks have no dropout.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _run_keeping(kept: KeptAttention, block: nn.Module, *args: Any) -> Any:
    with kept.running():
        return block(*args)
