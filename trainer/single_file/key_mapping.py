"""Names and fusion of a transformer's modules in single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..modules import own_parameters


@dataclass(frozen=True, slots=True)
class FusedModule:
    """A module of the file, whose output rows are those of one or several diffusers modules in this order."""

    stored: str
    """The module's name in the file."""
    modules: tuple[str, ...]
    """The modules' names in diffusers."""
    weight: str = "weight"
    """The file's name for the module's weight."""
    swapped: bool = False
    """True if the file stores the second half of the rows first."""

    def stored_name(self, leaf: str) -> str:
        """The file's name for the parameter `leaf` (`weight` or `bias`) of this module."""
        return f"{self.stored}.{self.weight if leaf == 'weight' else leaf}"


Layout = Sequence[FusedModule]


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a file's tensors by name, without prefix."""


def count_blocks(shapes: Shapes, list_name: str) -> int:
    """Number of modules in a module list."""
    dot = f"{list_name}."
    return len({name.removeprefix(dot).split(".")[0] for name in shapes if name.startswith(dot)})


def same_names(transformer: torch.nn.Module) -> Layout:
    """The layout of files with diffusers' names."""
    return [FusedModule(name, (name,)) for name, _ in own_parameters(transformer)]


def marker_tensors(name: str) -> dict[str, torch.Tensor]:
    """The empty float32 tensor `name`, [0], that marks a variant's files; nothing for an empty name."""
    return {name: torch.tensor([])} if name else {}


def swapped_halves(rows: torch.Tensor) -> torch.Tensor:
    """Swap the halves of `rows` [rows, ...] of any dtype; shape and dtype stay."""
    return torch.cat(rows.chunk(2)[::-1])


def to_stored(layout: Layout, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Rename and fuse a full state dict with diffusers' names to a file's layout, yielding each tensor in its dtype:
    fused weights [sum of out features, in features] and biases [sum of out features]."""
    for fused in layout:
        for leaf in ("weight", "bias"):
            parts = [state[f"{module}.{leaf}"] for module in fused.modules if f"{module}.{leaf}" in state]
            if not parts:
                continue
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            yield fused.stored_name(leaf), swapped_halves(rows) if fused.swapped else rows
