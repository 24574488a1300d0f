"""Inputs of checkpointed blocks, offloaded to host memory from the forward pass to the backward pass.

Copies run on a stream of their own. No tensor is recorded on it (`Tensor.record_stream`): the allocator would keep its
memory until the device has caught up with a host that runs ahead, and memory would pile up. Instead a tensor that is
copied out is kept until the next block starts, which waits for the copy; one that is copied in is waited for before it
is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .pinned import BufferPool


class HostInputs:
    """Offloads the inputs of checkpointed blocks to host memory and prefetches them for the backward pass."""

    def __init__(self) -> None:
        self._newest: weakref.ref[_Inputs] | None = None
        self._transfers: _Transfers | None = None

    def run(self, call: Callable[..., Any], block: nn.Module, *args: Any) -> Any:
        """Run call(block, *args), which saves its inputs and nothing else for the backward pass."""
        if self._transfers is None:
            self._transfers = _Transfers(args[0].device)
        self._transfers.release_sent()
        inputs = _Inputs(self._transfers, type(block), self._newest)
        self._newest = weakref.ref(inputs)
        with torch.autograd.graph.saved_tensors_hooks(inputs.pack, _unpack):
            return call(block, *args)


class _Transfers:
    """Copies between a device and page-locked buffers, which are allocated once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers = BufferPool(device)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._sent: list[torch.Tensor] = []
        """Tensors, any shape and dtype, that are being copied to the host."""

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy `source` on the device to `target` on the host, of one shape and dtype, after all kernels enqueued so
        far. Keeps `source` until `release_sent`."""
        self.copied = self._copy([(target, source)])
        if self._copies is not None:
            self._sent.append(source)

    def release_sent(self) -> None:
        """Let the device's memory of sent tensors go, to kernels that run after the copies."""
        if self._sent:
            self.wait(self.copied)
            self._sent.clear()

    def fetch(self, sources: list[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Start copying tensors of any shape and dtype to the device; returns them, and the event to wait for."""
        targets = [torch.empty_like(source, device=self.device) for source in sources]
        return targets, self._copy(list(zip(targets, sources, strict=True)))

    def wait(self, copied: Any) -> None:
        """Let the kernels enqueued from now on wait for a copy."""
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        """Copy the second tensor of each pair to the first; returns an event, None where the copies are done."""
        if self._copies is None:
            for target, source in pairs:
                target.copy_(source)
            return None
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            return self._copies.record_event()


class _Inputs:
    """Inputs of one checkpointed block. The autograd graph owns them, so they refer to each other weakly."""

    def __init__(self, transfers: _Transfers, kind: type[nn.Module], earlier: weakref.ref[_Inputs] | None) -> None:
        self.transfers = transfers
        self.kind = kind
        self.earlier = earlier
        self.host: list[torch.Tensor] = []
        self.fetched: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_Inputs, int]:
        """Copy tokens [B, L, D] of any dtype to host memory; vectors and masks stay on the device."""
        source, index = tensor.detach(), len(self.host)
        if tensor.ndim < 3:
            return source
        self.host.append(self.transfers.buffers.take(source.shape, source.dtype, (self.kind, index)))
        self.transfers.send(source, self.host[index])
        return self, index

    def fetch(self) -> None:
        """Start copying the inputs to the device."""
        fetched, self.copied = self.transfers.fetch(self.host)
        self.fetched = dict(enumerate(fetched))

    def pop(self, index: int) -> torch.Tensor:
        """Return an input [B, L, D] on the device in its own dtype, and start copying those of the block before."""
        self.transfers.release_sent()
        if index not in self.fetched:
            self.fetch()
        self.transfers.wait(self.copied)
        earlier = self.earlier() if self.earlier is not None else None
        if earlier is not None and not earlier.fetched:
            earlier.fetch()
        return self.fetched.pop(index)


def _unpack(packed: torch.Tensor | tuple[_Inputs, int]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    inputs, index = packed
    return inputs.pop(index)
