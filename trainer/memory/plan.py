"""The plan of a run: how the base is held, what lives on the device, what is computed again, what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..config.settings import Precision

KEPT = "kept for the backward pass"
"""Of `Plan.expected`: the activations. Not there where nobody counted them."""


ActivationCheckpointing = Literal["none", "selective", "full"]
"""What of a block is computed again in the backward pass: nothing, all but the attention's output, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Decided before anything is loaded. Blocks are counted in the order in which they run."""

    precision: Precision
    dtype: torch.dtype
    """Of computations, and of weights that are not quantized."""
    offload: Literal["auto", "none", "phases"]
    """How text encoder, VAE and transformer share the device: see `ModelComponents`."""
    modulation_on_host: bool = False
    """The layers that see nothing but the timestep (and the pooled text) run ahead of the steps, and their weights
    stay in host memory."""
    streamed: frozenset[int] = frozenset()
    """Blocks whose frozen weights stay in host memory and come to the device when they run."""
    activation_checkpointing: tuple[ActivationCheckpointing, ...] = ()
    """For each block; blocks beyond its end: none."""
    inputs_on_host: bool = False
    """What blocks are computed again from waits in host memory."""
    quantize_activations: bool = False
    """Quantized weights are multiplied with quantized inputs, where the device is fast at that; else dequantized for
    the moment."""
    compile: bool = False
    """The repeated blocks go through torch.compile."""
    sharded: bool = False
    """The transformer's weights are sharded over the processes of the run."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Bytes of device memory, by what takes them."""

    def activation_checkpointing_of(self, block: int) -> ActivationCheckpointing:
        """What of this block is computed again."""
        return self.activation_checkpointing[block] if block < len(self.activation_checkpointing) else "none"

    @property
    def bytes(self) -> int:
        """Of device memory, at the most."""
        return sum(self.expected.values())

    def sum_line(self) -> str:
        """What the expected memory is made of."""
        return " + ".join(f"{name} {gigabytes(size)}" for name, size in self.expected.items())

    def line(self) -> str:
        """How the run will go, in one line."""
        components = [self.precision]
        blocks = len(self.activation_checkpointing)
        if self.modulation_on_host:
            components.append("modulation in host memory")
        if self.streamed:
            components.append(f"{len(self.streamed)} of {blocks} blocks streamed")
        for mode, name in (("full", "computed again"), ("selective", "computed again but for attention")):
            if count := self.activation_checkpointing.count(mode):
                components.append(f"{'all' if count == blocks else count} blocks {name}")
        if self.compile:
            components.append("compiled")
        more = "" if KEPT in self.expected else " and activations"
        return f"{', '.join(components)}; about {gigabytes(self.bytes)} GB{more}"


def gigabytes(size: int) -> str:
    """Bytes as decimal gigabytes, two digits of them."""
    return f"{size / 1e9:.1f}" if size >= 1e9 or not size else f"{size / 1e9:.2g}"
