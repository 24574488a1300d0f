"""The plan of a run: precision, offloading, activation checkpointing, and the expected device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..config.settings import Precision

FROZEN, SLOTS, TRAINED = "frozen weights", "slots for streamed blocks", "trained weights, gradients, optimizer"
"""Keys of `Plan.expected`: what lies on the device between steps."""


ACTIVATIONS = "activations"
"""Key of `Plan.expected`: activations saved for the backward pass. Missing where they were not estimated."""


ActivationCheckpointing = Literal["none", "selective", "full"]
"""Activation checkpointing of a block: none; selective, which saves the attention output; or full."""


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """Memory that one phase of a run takes at its peak."""

    name: Literal["encoding texts", "encoding images", "loading", "training", "sampling"]
    device: int
    """Bytes of the device."""
    host: int
    """Bytes of host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Decisions made before anything is loaded. Blocks are numbered in the order in which they run."""

    precision: Precision
    dtype: torch.dtype
    """Compute dtype, and dtype of the weights that are not quantized."""
    offload: Literal["auto", "none", "phases"]
    """Sharing of the device by text encoder, VAE and transformer: see `ModelComponents`."""
    stream_text_encoder: bool = False
    """The text encoder's layers stay in host memory and are streamed, although it would fit the device alone: it comes
    back between steps, and the host cannot hold the transformer meanwhile."""
    modulation_on_host: bool = False
    """Modulation layers, which see only the timestep (and the pooled text), run ahead of the steps; their weights stay
    in host memory."""
    streamed: frozenset[int] = frozenset()
    """Blocks whose frozen weights stay in host memory and are streamed to the device when they run."""
    activation_checkpointing: tuple[ActivationCheckpointing, ...] = ()
    """Mode of each block; blocks beyond its end have none."""
    inputs_on_host: bool = False
    """Inputs of checkpointed blocks are offloaded to host memory."""
    inputs_host_bytes: int = 0
    """Bytes that they take there, for which page-locked memory is left; 0 where they were not estimated."""
    quantize_activations: bool = False
    """Matmuls with quantized weights run in the storage dtype, on quantized inputs; else weights are dequantized."""
    autocast: bool = False
    """The weights are float32 and a step casts them to the compute dtype (mixed precision). A frozen base and a full
    fine-tune with stochastic rounding have their weights in it: there, autocast would only add casts."""
    compile: bool = False
    """The repeated blocks are compiled with torch.compile."""
    sharded: bool = False
    """The transformer's weights are sharded over the processes of the run."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Bytes of device memory by use, at the peak of a training step."""
    phases: tuple[PhaseMemory, ...] = ()
    """All phases of the run, the training step included; empty on the CPU, and for weights sharded over devices."""

    def activation_checkpointing_of(self, block: int) -> ActivationCheckpointing:
        """Return the mode of this block."""
        return self.activation_checkpointing[block] if block < len(self.activation_checkpointing) else "none"

    @property
    def bytes(self) -> int:
        """Expected peak of device memory in bytes."""
        return sum(self.expected.values())

    def sum_line(self) -> str:
        """Format the expected memory by use as a sum."""
        return " + ".join(f"{name} {gigabytes(size)}" for name, size in self.expected.items())

    def line(self) -> str:
        """Describe the plan in one line for the user."""
        components = [self.precision]
        blocks = len(self.activation_checkpointing)
        if self.modulation_on_host:
            components.append("modulation in host memory")
        if self.streamed:
            components.append(f"{len(self.streamed)} of {blocks} blocks streamed")
        for mode, name in (("full", "checkpointed"), ("selective", "selectively checkpointed")):
            if count := self.activation_checkpointing.count(mode):
                components.append(f"{'all' if count == blocks else count} blocks {name}")
        if self.compile:
            components.append("compiled")
        more = "" if ACTIVATIONS in self.expected else " and activations"
        return f"{', '.join(components)}; about {gigabytes(self.bytes)} GB{more}"


def gigabytes(size: int) -> str:
    """Format bytes as decimal gigabytes: one decimal, below 1 GB two digits."""
    return f"{size / 1e9:.1f}" if size >= 1e9 or not size else f"{size / 1e9:.2g}"
