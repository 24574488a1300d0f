"""Trials of a block: small random ones in which its own forward pass is compared with diffusers'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

HEADS, HEAD_SIZE, TOKENS, TEXT_TOKENS = 2, 32, 4, 3
"""Sizes of the block: the smallest with several heads and two lengths."""


WIDTH = HEADS * HEAD_SIZE
SIZES: Mapping[str, Any] = {"dim": WIDTH, "num_attention_heads": HEADS, "attention_head_dim": HEAD_SIZE}
"""Arguments of a block's constructor, as all of diffusers' transformers of this kind have them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a block."""

    options: Mapping[str, Any]
    """Arguments of the constructor by name."""
    inputs: Mapping[str, Any]
    """Arguments of the forward pass by name."""


class OwnBlock(Protocol):
    """Port: a block's class with a forward pass of this package, a subclass of diffusers' class of the same name."""

    calls_attend: bool
    """True if the forward pass calls `attention.attend` once."""

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        """Yield runs on the CPU in float32 that go through all of the forward pass."""
        ...


def random_tokens(count: int) -> torch.Tensor:
    """Draw tokens [1, count, WIDTH] float32."""
    return torch.randn(1, count, WIDTH)


def random_rotation() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw cosines and sines of text and image tokens, each [TEXT_TOKENS + TOKENS, HEAD_SIZE] float32, the same for
    two neighbouring channels."""
    angles = torch.randn(TEXT_TOKENS + TOKENS, HEAD_SIZE // 2).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()
