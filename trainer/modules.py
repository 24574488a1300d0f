"""Helpers for the modules of a transformer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

from torch import nn


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """List the repeated blocks in the order in which they run. diffusers names their classes in `_repeated_blocks`."""
    repeated = cast("Collection[str]", transformer._repeated_blocks)  # nn.Module types attributes as Tensor | Module
    return [module for module in transformer.modules() if type(module).__name__ in repeated]


def own_parameters(transformer: nn.Module) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
    """Yield every module that has parameters of its own: its name and these parameters by name."""
    for name, module in transformer.named_modules():
        if parameters := dict(module.named_parameters(recurse=False)):
            yield name, parameters
