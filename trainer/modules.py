from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks in the order in which they run. diffusers names their classes in `_repeated_blocks`."""
    return [module for module in transformer.modules() if type(module).__name__ in transformer._repeated_blocks]


def own_parameters(transformer: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.nn.Parameter]]]:
    """Every module that has parameters itself, by name, with them."""
    for name, module in transformer.named_modules():
        if parameters := dict(module.named_parameters(recurse=False)):
            yield name, parameters
