"""How a transformer's modules are named and joined in single files, and what their shapes tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..modules import own_parameters


@dataclass(frozen=True, slots=True)
class FusedModule:
    """A module of the file: its output rows are those of one or several of diffusers' modules, in this order."""

    stored: str
    """The module's name in the file."""
    modules: tuple[str, ...]
    """The modules' names in diffusers."""
    weight: str = "weight"
    """What the file calls the module's weight."""
    swapped: bool = False
    """The file holds the rows' second half first."""

    def stored_name(self, leaf: str) -> str:
        """The file's name for diffusers' parameter `leaf` (`weight` or `bias`) of this module."""
        return f"{self.stored}.{self.weight if leaf == 'weight' else leaf}"


Layout = Sequence[FusedModule]


Shapes = Mapping[str, tuple[int, ...]]
"""A file's tensors by name, without a prefix."""


HEAD_SIZE = 128


AXES = (16, 56, 56)
"""Rotary dimensions of frame, row and column: with `HEAD_SIZE` the same in every Flux and every Qwen-Image."""


def count_blocks(shapes: Shapes, list_name: str) -> int:
    """How many modules a module list has."""
    dot = f"{list_name}."
    return len({name.removeprefix(dot).split(".")[0] for name in shapes if name.startswith(dot)})


def same_names(transformer: torch.nn.Module) -> Layout:
    """The layout of files that name everything as diffusers does."""
    return [FusedModule(name, (name,)) for name, _ in own_parameters(transformer)]


def swapped_halves(rows: torch.Tensor) -> torch.Tensor:
    """The second half of the rows first."""
    return torch.cat(rows.chunk(2)[::-1])


def to_stored(layout: Layout, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """A whole state dict with diffusers' names, tensor by tensor as a file of this layout holds it."""
    for fused in layout:
        for leaf in ("weight", "bias"):
            parts = [state[f"{module}.{leaf}"] for module in fused.modules if f"{module}.{leaf}" in state]
            if not parts:
                continue
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            yield fused.stored_name(leaf), swapped_halves(rows) if fused.swapped else rows
