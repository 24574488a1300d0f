"""The plan of a run: how the base is held, what lives on the device, what is computed again, what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8", "nf4"]
"""How the large weights of the frozen base are held. Those of a quantized file stay as they are stored."""

Recompute = Literal["none", "selective", "full"]
"""What of a block is computed again in the backward pass: nothing, all but the attention's output, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Decided before anything is loaded. Blocks are counted in the order in which they run."""

    precision: Precision
    dtype: torch.dtype
    """Of computations, and of weights that are not quantized."""
    offload: Literal["auto", "none", "phases"]
    """How text encoder, VAE and transformer share the device: see `Parts`."""
    modulation_on_host: bool = False
    """The layers that see nothing but the timestep (and the pooled text) run ahead of the steps, and their weights
    stay in host memory."""
    streamed: frozenset[int] = frozenset()
    """Blocks whose frozen weights stay in host memory and come to the device when they run."""
    recompute: tuple[Recompute, ...] = ()
    """For each block; blocks beyond its end: none."""
    inputs_on_host: bool = False
    """What blocks are computed again from waits in host memory."""
    integer_products: bool = False
    """Quantized weights are multiplied with quantized inputs, where the device is fast at that; else dequantized for
    the moment."""
    compile: bool = False
    """The repeated blocks go through torch.compile."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Bytes of device memory, by what takes them."""

    def recompute_of(self, block: int) -> Recompute:
        """What of this block is computed again."""
        return self.recompute[block] if block < len(self.recompute) else "none"
