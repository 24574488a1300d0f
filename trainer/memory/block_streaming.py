"""Block streaming: frozen blocks stay in host memory and are copied to the device, two at a time, when they run.

While one block computes, the next is copied into the other of two slots. Nothing is copied back. The next block is
predicted, in a checkpointed backward pass too; a wrong prediction costs time, never correctness.

diffusers' group offloading is not used: it is made for inference and does not follow the order of a backward pass.

The backward pass of a block reads its weights through views of its slot, made when the checkpointed block was
recomputed. The slot is overwritten at the earliest when an earlier block is recomputed, and by then this backward pass
has finished: among the nodes that are ready, autograd runs the one created last, and the last-created pending node of a
block is always ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from .pinned import PinnedTensors


def next_block(block: int, previous: int, count: int, training: bool) -> int:
    """Predict which of `count` blocks runs after `block` when `previous` ran before it: first to last, in training
    then last to first, and from the first again."""
    last = count - 1
    if block == 0:
        return min(1, last)
    if block == last:
        return last - 1 if training else 0
    return block + 1 if block > previous else block - 1


class _Slot:
    """A device buffer for one block."""

    def __init__(self, size: int, device: torch.device, blocks: Sequence[PinnedTensors]) -> None:
        self.flat = torch.empty(size, dtype=torch.uint8, device=device)
        self.views = [block.views_in(self.flat) for block in blocks]
        self.block: int | None = None
        self.filled = torch.cuda.Event() if device.type == "cuda" else None


class BlockStreamer:
    """Streams frozen tensors of blocks, in the order in which the blocks run, through two slots on the device."""

    def __init__(self, blocks: Sequence[nn.Module], tensors: Sequence[PinnedTensors], device: torch.device) -> None:
        """`tensors`: those to stream of each block, in host memory."""
        self.device = device
        self.blocks = list(tensors)
        self._slots: list[_Slot] = []
        self._previous = -1
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before_forward, index))

    @property
    def device_bytes(self) -> int:
        """Bytes of the slots."""
        return min(2, len(self.blocks)) * max(block.bytes for block in self.blocks)

    def allocate_slots(self) -> None:
        """Allocate the slots, if that is not done yet, and start to fill them."""
        if not self._slots:
            size = max(block.bytes for block in self.blocks)
            self._slots = [_Slot(size, self.device, self.blocks) for _ in self.blocks[:2]]
            for index, slot in enumerate(self._slots):
                self._fill(slot, index)

    def release_slots(self) -> None:
        """Free the slots; the blocks' tensors point at host memory."""
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        for block in self.blocks:
            block.point_at_host()
        self._slots = []
        self._previous = -1

    def _before_forward(self, index: int, module: nn.Module, args: Any) -> None:
        """Point the block at its slot, filled for the kernels enqueued from now on, and start copying the next one."""
        self.allocate_slots()
        slot = self._slot_of(index)
        if slot is None:
            slot = next(slot for slot in self._slots if slot.block != self._previous)
            self._fill(slot, index)
        if slot.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.filled)
        self.blocks[index].point_at(slot.views[index])
        coming = next_block(index, self._previous, len(self.blocks), torch.is_grad_enabled())
        self._previous = index
        if self._slot_of(coming) is None:
            self._fill(next(other for other in self._slots if other is not slot), coming)

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == index), None)

    def _fill(self, slot: _Slot, index: int) -> None:
        """Start copying a block into a slot after all kernels enqueued so far."""
        if slot.block is not None:
            self.blocks[slot.block].point_at_host()
        slot.block = index
        if self._copies is None:
            self.blocks[index].copy_to(slot.flat)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            self.blocks[index].copy_to(slot.flat)
            if slot.filled is not None:
                slot.filled.record(self._copies)
