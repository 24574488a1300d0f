"""A frozen module, such as a text encoder, whose repeated layers are streamed to the device while it runs."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from .block_streaming import BlockStreamer
from .pinned import PAGE_LOCKS, PinnedTensors


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """List the layers of the outermost lists of equal layers in a module, in the order in which they were made, which
    is the one in which the text encoders run them."""
    if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(layer) for layer in module}) == 1:
        return list(module)
    return [layer for child in module.children() for layer in repeated_layers(child)]


class StreamedModule:
    """A module whose repeated layers stay in host memory and are copied to the device when they run. The results are
    those of the resident module, bit for bit."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Move the repeated layers of a module on the CPU to page-locked buffers; `device` will run them."""
        self.module = module
        self.device = device
        layers = repeated_layers(module)
        # What the training itself streams comes more often: half of the page-locked memory is left to it.
        leave = PAGE_LOCKS.limit // 2
        buffers = [PinnedTensors([*layer.parameters(), *layer.buffers()]).lock(device, leave) for layer in layers]
        self.streamer = BlockStreamer(layers, buffers, device)
        self._hosted = {id(tensor) for buffer in buffers for tensor in buffer.tensors}

    def to(self, device: torch.device | str) -> None:
        """Move all but the layers to a device, and make buffers for the layers there or free them."""
        if torch.device(device) == self.device:
            self.streamer.allocate_slots()
        else:
            self.streamer.release_slots()
        self.module._apply(lambda tensor: tensor if id(tensor) in self._hosted else tensor.to(device))

    @property
    def device_bytes(self) -> int:
        """Bytes that the module takes on the device."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        resident = sum(tensor.nbytes for tensor in tensors if id(tensor) not in self._hosted)
        return resident + self.streamer.device_bytes
