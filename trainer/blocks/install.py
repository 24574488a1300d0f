"""Gives a transformer the blocks of this room, where they compute what the installed diffusers computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..compiled import assume_compiler

HEADS, HEAD_SIZE, TOKENS, TEXT_TOKENS = 2, 32, 4, 3
"""Sizes of the block that is tried out: the smallest with several heads and two lengths."""


def use_blocks(transformer: nn.Module, blocks: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Replace the forward passes of a transformer's blocks: `blocks` maps diffusers' classes to subclasses of the same
    name. Another diffusers may compute something else under the same name: a class whose outputs are not its own to the
    bit stays as it is."""
    for module in transformer.modules():
        own = blocks.get(type(module))
        if own is not None and _same_outputs(type(module), own):
            module.__class__ = own


@lru_cache(maxsize=16)
def _same_outputs(theirs: type[nn.Module], ours: type[nn.Module]) -> bool:
    """Run a small random block of both classes on the CPU, in plain torch."""
    with (
        assume_compiler(None),
        unset_fake_temporarily(),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
    ):
        torch.manual_seed(0)
        try:
            return all(_same(theirs, ours, *case) for case in _cases(theirs))
        except Exception:  # Whatever another diffusers has changed: it runs its own forward pass.
            return False


def _same(theirs: type[nn.Module], ours: type[nn.Module], options: dict[str, Any], inputs: dict[str, Any]) -> bool:
    block = theirs(dim=HEADS * HEAD_SIZE, num_attention_heads=HEADS, attention_head_dim=HEAD_SIZE, **options)
    expected = block(**inputs)
    block.__class__ = ours
    found = block(**inputs)
    return all(map(torch.equal, found, expected))


def _cases(block: type[nn.Module]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Options of a block, and inputs of a forward pass in float32, by name."""
    inputs = _inputs(block)
    yield {}, inputs
    if "Qwen" in block.__name__:
        rows = torch.arange(TOKENS)[None] // (TOKENS // 2)
        yield {"zero_cond_t": True}, inputs | {"temb": torch.randn(2, HEADS * HEAD_SIZE), "modulate_index": rows}


def _inputs(block: type[nn.Module]) -> dict[str, Any]:
    width, tokens = HEADS * HEAD_SIZE, TEXT_TOKENS + TOKENS
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(1, TOKENS, width),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, width),
        "temb": torch.randn(1, width),
    }
    if "Flux2" in block.__name__:
        del inputs["temb"]
        if "Single" in block.__name__:
            inputs |= {"encoder_hidden_states": None, "temb_mod": torch.randn(1, 3 * width)}
            inputs["hidden_states"] = torch.randn(1, tokens, width)
        else:
            inputs |= {f"temb_mod_{stream}": torch.randn(1, 6 * width) for stream in ("img", "txt")}
    if "Qwen" not in block.__name__:
        angles = torch.randn(tokens, HEAD_SIZE // 2).repeat_interleave(2, dim=1)
        return inputs | {"image_rotary_emb": (angles.cos(), angles.sin())}
    angles = torch.randn(tokens, HEAD_SIZE // 2)
    rotary = torch.polar(torch.ones_like(angles), angles).split([TOKENS, TEXT_TOKENS])
    mask = torch.tensor([[True, True, False]])
    return inputs | {"image_rotary_emb": rotary, "encoder_hidden_states_mask": mask}
