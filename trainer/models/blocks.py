"""The repeated blocks of a transformer."""

from __future__ import annotations

from torch import nn


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks in the order in which they run. diffusers names their classes in `_repeated_blocks`."""
    return [module for module in transformer.modules() if type(module).__name__ in transformer._repeated_blocks]
