"""Inputs of checkpointed blocks, offloaded to host memory from the forward pass to the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class HostInputs:
    """Offloads the inputs of checkpointed blocks to host memory and prefetches them for the backward pass."""

    def __init__(self) -> None:
        self._newest: weakref.ref[_Inputs] | None = None
        self._copies: torch.cuda.Stream | None = None

    def run(self, call: Callable[..., Any], block: nn.Module, *args: Any) -> Any:
        """Run call(block, *args), which saves its inputs and nothing else for the backward pass."""
        if self._copies is None and args[0].device.type == "cuda":
            self._copies = torch.cuda.Stream(args[0].device)
        inputs = _Inputs(self._copies, self._newest)
        self._newest = weakref.ref(inputs)
        with torch.autograd.graph.saved_tensors_hooks(inputs.pack, _unpack):
            return call(block, *args)


class _Inputs:
    """Inputs of one checkpointed block. The autograd graph owns them, so they refer to each other weakly."""

    def __init__(self, copies: torch.cuda.Stream | None, earlier: weakref.ref[_Inputs] | None) -> None:
        self.copies = copies
        self.earlier = earlier
        self.host: list[torch.Tensor] = []
        self.fetched: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_Inputs, int]:
        """Copy tokens [B, L, D] of any dtype to host memory; vectors and masks stay on the device."""
        if tensor.ndim < 3:
            return tensor.detach()
        self.device = tensor.device
        self.host.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.copies is not None))
        self._copy([(self.host[-1], tensor.detach())])
        return self, len(self.host) - 1

    def fetch(self) -> None:
        """Start copying the inputs to the device."""
        self.fetched = {index: torch.empty_like(host, device=self.device) for index, host in enumerate(self.host)}
        self._copy([(tensor, self.host[index]) for index, tensor in self.fetched.items()])

    def pop(self, index: int) -> torch.Tensor:
        """Return an input [B, L, D] on the device in its own dtype, and start copying those of the block before."""
        if index not in self.fetched:
            self.fetch()
        if self.copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)
        earlier = self.earlier() if self.earlier is not None else None
        if earlier is not None and not earlier.fetched:
            earlier.fetch()
        return self.fetched.pop(index)

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy between host and device after all kernels enqueued so far."""
        if self.copies is None:
            for target, source in pairs:
                target.copy_(source)
            return
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
                (target if target.device == self.device else source).record_stream(self.copies)
            self.copied = self.copies.record_event()


def _unpack(packed: torch.Tensor | tuple[_Inputs, int]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    inputs, index = packed
    return inputs.pop(index)
