"""Placement of a transformer by a plan: resident, offloaded and streamed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..compiled import allow_variants
from ..distributed.fsdp import shard_transformer
from ..modules import blocks_of
from .block_streaming import BlockStreamer
from .hosted_weights import HostedWeights
from .modulation import Modulation, ModulationOutputs, modulation_linears
from .pinned import BATCH_BYTES

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from ..models.family import Family
    from .plan import Plan


CUDNN_CAPABILITIES = ((9, 0), (10, 0))
"""Compute capabilities on which cuDNN's attention is the fastest. On others, such as 12.0, and with a mask its
gradients have been reported wrong or NaN (https://github.com/pytorch/pytorch/issues/162073, 171627, 196678). With a
single head they are wrong too, as measured on 9.0 with torch 2.11: the strides of heads and positions are equal there,
and the backward pass takes one dimension for the other."""


class Placement:
    """A transformer placed by a plan.

    Offloaded weights are known as tensors, not by name, so that layers can be wrapped afterwards, in LoRA layers for
    example, whose own tensors are resident.
    """

    def __init__(
        self,
        transformer: nn.Module,
        family: Family,
        plan: Plan,
        device: torch.device,
        loaded: HostedWeights | None = None,
    ) -> None:
        """Weights that the plan keeps in host memory are there already, in buffers of `loaded`, or are moved to buffers
        now. Under a sharded plan all of the transformer is on the CPU until `shard` is called."""
        self.transformer = transformer
        self._waits = plan.sharded
        self.device = device
        self.modulation: Modulation | None = None
        self.streamer: BlockStreamer | None = None
        loaded = loaded or HostedWeights(family, plan, device)
        layers = modulation_linears(transformer, family.modulation_layers()) if plan.modulation_on_host else {}
        hosted = {id(tensor) for layer in layers.values() for tensor in _tensors(layer)}
        # Page-locked in this order: what is copied more often first.
        leave = plan.inputs_host_bytes + BATCH_BYTES
        all_blocks = blocks_of(transformer)
        if blocks := [all_blocks[index] for index in sorted(plan.streamed)]:
            buffers = [
                loaded.buffer_of(
                    [tensor for tensor in _tensors(block) if not tensor.requires_grad and id(tensor) not in hosted]
                )
                for block in blocks
            ]
            self.streamer = BlockStreamer(blocks, [buffer.lock(device, leave) for buffer in buffers], device)
        if layers:
            weights = {name: (layer, loaded.buffer_of(_tensors(layer))) for name, layer in layers.items()}
            for _, buffer in weights.values():
                buffer.lock(device, leave)
            rows = partial(family.modulation_rows, transformer)
            self.modulation = Modulation(transformer, weights, rows, device)
        self._hosted = hosted | {id(tensor) for tensor in self._streamed_tensors()}

    def to(self, device: torch.device | str) -> None:
        """Move what is resident to the plan's device, or out of the way to the host. What was moved stays where it
        is, so that it may be called again after an adapter came in."""
        if self._waits:
            return
        if self.streamer is not None and torch.device(device) == self.device:
            self.streamer.allocate_slots()
        elif self.streamer is not None:
            self.streamer.release_slots()
        self.transformer._apply(lambda tensor: tensor if id(tensor) in self._hosted else tensor.to(device))

    def shard(self, replicated: Iterable[nn.Parameter]) -> None:
        """Shard the weights over all processes, block by block on their way to the device; see `shard_transformer`."""
        shard_transformer(self.transformer, self.device, replicated)
        self._waits = False

    @property
    def device_bytes(self) -> int:
        """Bytes that the transformer takes on the device."""
        resident = sum(
            tensor.numel() * tensor.element_size()
            for tensor in chain(self.transformer.parameters(), self.transformer.buffers())
            if id(tensor) not in self._hosted
        )
        return resident + (self.streamer.device_bytes if self.streamer is not None else 0)

    def precompute(self, passes: Sequence[Callable[[], Any]]) -> Sequence[ModulationOutputs | None]:
        """Compute modulation ahead of forward passes. Each of `passes` runs the transformer, in the autocast context
        that it will have; its result goes to `forward` when it does."""
        if self.modulation is None or not passes:
            return [None] * len(passes)
        return self.modulation.precompute(passes)

    @contextmanager
    def forward(self, outputs: ModulationOutputs | None = None, masked: bool = False) -> Iterator[None]:
        """Context for one forward pass and its backward pass; `masked`: attention has a mask."""
        modulation = self.modulation.using(outputs) if self.modulation is not None and outputs is not None else None
        heads = cast("ModelMixin", self.transformer).config["num_attention_heads"]
        with attention_backend(self.device, masked, heads), modulation or nullcontext():
            yield

    def _streamed_tensors(self) -> list[torch.Tensor]:
        blocks = self.streamer.blocks if self.streamer is not None else []
        return [tensor for block in blocks for tensor in block.tensors]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def attention_backend(device: torch.device, masked: bool, heads: int) -> AbstractContextManager[Any]:
    """Context in which attention of `heads` heads prefers the fastest kernel with a backward pass, among those that
    torch has enabled: cuDNN's on the GPUs of `CUDNN_CAPABILITIES`, never `masked` or with one head."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) not in CUDNN_CAPABILITIES:
        return nullcontext()
    enabled = torch.backends.cuda
    order = {
        SDPBackend.CUDNN_ATTENTION: enabled.cudnn_sdp_enabled() and not masked and heads > 1,
        SDPBackend.FLASH_ATTENTION: enabled.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: enabled.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: enabled.math_sdp_enabled(),
    }
    return sdpa_kernel([backend for backend, allowed in order.items() if allowed], set_priority=True)


def compile_blocks(transformer: nn.Module) -> None:
    """Compile the forward of each repeated block. Hooks and checkpointing stay outside."""
    # Blocks of one class share their variants: for each batch size and set of inputs and LoRAs one, and one for any
    # shape.
    allow_variants()
    for block in blocks_of(transformer):
        block.forward = torch.compile(block.forward)
