"""Ring streaming: frozen blocks live in host memory and visit the device, two at a time, when they run.

While one block computes, the next is copied into the other of two slots. Nothing is ever copied back. The order of
blocks in a backward pass that computes them again is foreseen as well; a wrong guess costs time, never correctness.

What a block's backward reads of its weights are views of its slot, taken when it was computed again. The slot is
overwritten at the earliest when an earlier block begins to be computed again, and by then this backward is done:
autograd runs the node that was made last among those that are ready, and of a block's nodes that have not run the one
made last is always ready.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .pinned import PinnedTensors


def following(block: int, previous: int, count: int, training: bool) -> int:
    """Which of `count` blocks runs after `block` when `previous` ran before it: forwards, then, in training, the last
    one again and backwards; then from the first one on."""
    last = count - 1
    if block == 0:
        return min(1, last)
    if block == last:
        return last - 1 if training else 0
    return block + 1 if block > previous else block - 1


class _Slot:
    """Device memory for one block."""

    def __init__(self, size: int, device: torch.device, blocks: Sequence[PinnedTensors]) -> None:
        self.flat = torch.empty(size, dtype=torch.uint8, device=device)
        self.views = [block.views_in(self.flat) for block in blocks]
        self.block: int | None = None
        self.filled = torch.cuda.Event() if device.type == "cuda" else None


class BlockStreamer:
    """Streams the frozen tensors of some blocks, in the order in which they run, through two slots on the device."""

    def __init__(
        self, blocks: Sequence[nn.Module], tensors: Sequence[Sequence[torch.Tensor]], device: torch.device
    ) -> None:
        """`tensors`: for each block those that are streamed. They move to host memory now."""
        self.device = device
        self.blocks = [PinnedTensors(own, device) for own in tensors]
        self._slots: list[_Slot] = []
        self._previous = -1
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda module, args, index=index: self._enter(index))

    @property
    def device_bytes(self) -> int:
        """What the slots take."""
        return min(2, len(self.blocks)) * max(block.bytes for block in self.blocks)

    def take_slots(self) -> None:
        """Take the device memory, if it isn't taken, and begin to fill it."""
        if not self._slots:
            size = max(block.bytes for block in self.blocks)
            self._slots = [_Slot(size, self.device, self.blocks) for _ in self.blocks[:2]]
            for index, slot in enumerate(self._slots):
                self._fill(slot, index)

    def release_slots(self) -> None:
        """Let go of the device memory; the blocks' data is the host's."""
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        for block in self.blocks:
            block.go_home()
        self._slots = []
        self._previous = -1

    def _enter(self, index: int) -> None:
        """The block's data is in its slot when what is enqueued from now on runs, and the next one's is on its way."""
        self.take_slots()
        slot = self._holding(index)
        if slot is None:
            slot = next(slot for slot in self._slots if slot.block != self._previous)
            self._fill(slot, index)
        if slot.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.filled)
        self.blocks[index].point_at(slot.views[index])
        coming = following(index, self._previous, len(self.blocks), torch.is_grad_enabled())
        self._previous = index
        if self._holding(coming) is None:
            self._fill(next(other for other in self._slots if other is not slot), coming)

    def _holding(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == index), None)

    def _fill(self, slot: _Slot, index: int) -> None:
        """Begin to copy a block into a slot, once the device is done with what is enqueued so far."""
        if slot.block is not None:
            self.blocks[slot.block].go_home()
        slot.block = index
        if self._copies is None:
            self.blocks[index].copy_to(slot.flat)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            self.blocks[index].copy_to(slot.flat)
            slot.filled.record(self._copies)
