"""Carrying out a plan on a transformer: what of it is on the device, and what comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distributed.fsdp import shard_transformer
from ..modules import blocks_of
from .block_streaming import BlockStreamer
from .modulation import Modulation, ModulationOutputs

if TYPE_CHECKING:
    from ..models.family import Family
    from .plan import Plan


COMPILED_FORMS = 32
"""Of one class of blocks, at the most."""


class Placement:
    """A transformer under a plan.

    It holds tensors, not names: layers may be wrapped afterwards, by an adapter's for example. Their own tensors are
    resident.
    """

    def __init__(self, transformer: nn.Module, family: Family, plan: Plan, device: torch.device) -> None:
        """`transformer` is on the CPU; what stays in host memory moves to buffers that the device copies from. Under a
        sharded plan all of it stays there until `shard` is called."""
        self.transformer = transformer
        self._waits = plan.sharded
        self.device = device
        self.modulation: Modulation | None = None
        self.streamer: BlockStreamer | None = None
        if plan.modulation_on_host:
            modulation = Modulation(transformer, family.modulation_layers(), device)
            self.modulation = modulation if modulation.layers else None
        hosted = {id(tensor) for tensor in self._modulation_tensors()}
        blocks = blocks_of(transformer)
        if streamed := [blocks[index] for index in sorted(plan.streamed)]:
            frozen = [
                [
                    tensor
                    for tensor in chain(block.parameters(), block.buffers())
                    if not tensor.requires_grad and id(tensor) not in hosted
                ]
                for block in streamed
            ]
            self.streamer = BlockStreamer(streamed, frozen, device)
        self._hosted = hosted | {id(tensor) for tensor in self._streamed_tensors()}

    def to(self, device: torch.device | str) -> None:
        """Move what is resident to the plan's device, or out of the way to the host. What was moved stays where it
        is, so that it may be called again after an adapter came in."""
        if self._waits:
            return
        if self.streamer is not None and torch.device(device) == self.device:
            self.streamer.take_slots()
        elif self.streamer is not None:
            self.streamer.release_slots()
        self.transformer._apply(lambda tensor: tensor if id(tensor) in self._hosted else tensor.to(device))

    def shard(self, replicated: Iterable[nn.Parameter]) -> None:
        """Shard the weights over all processes, block by block on their way to the device; see `shard_transformer`."""
        shard_transformer(self.transformer, self.device, replicated)
        self._waits = False

    @property
    def device_bytes(self) -> int:
        """What it takes on the device when it is there."""
        resident = sum(
            tensor.numel() * tensor.element_size()
            for tensor in chain(self.transformer.parameters(), self.transformer.buffers())
            if id(tensor) not in self._hosted
        )
        return resident + (self.streamer.device_bytes if self.streamer is not None else 0)

    def precompute(self, passes: Sequence[Callable[[], Any]]) -> Sequence[ModulationOutputs | None]:
        """What can be computed ahead of the coming forward passes, each as a call that would do it, in the autocast
        context that it will run in: to be handed to `forward` in its turn."""
        if self.modulation is None or not passes:
            return [None] * len(passes)
        return self.modulation.precompute(passes)

    @contextmanager
    def forward(self, outputs: ModulationOutputs | None = None) -> Iterator[None]:
        """Inside, one forward pass is run, and its backward pass."""
        modulation = self.modulation.using(outputs) if self.modulation is not None and outputs is not None else None
        with attention_backend(self.device), modulation or nullcontext():
            yield

    def _modulation_tensors(self) -> list[torch.Tensor]:
        return self.modulation.tensors if self.modulation is not None else []

    def _streamed_tensors(self) -> list[torch.Tensor]:
        blocks = self.streamer.blocks if self.streamer is not None else []
        return [tensor for block in blocks for tensor in block.tensors]


def attention_backend(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, attention runs on the device's fastest kernel that has a backward pass: cuDNN's from Hopper on."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        return nullcontext()
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


def compile_blocks(transformer: nn.Module) -> None:
    """Compile what each repeated block computes. Hooks and checkpointing stay outside."""
    config = torch._dynamo.config
    # Blocks of one class share their compiled forms: one, then one for any shape, for each batch size and set of
    # inputs and adapters; torch gives up at 8.
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(COMPILED_FORMS, getattr(config, limit)))
    for block in blocks_of(transformer):
        block.forward = torch.compile(block.forward)
