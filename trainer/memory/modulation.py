"""Modulation off the device: the layers that see nothing but the timestep and the pooled text run ahead.

A third of a transformer's weights multiply one vector for each forward pass. The vectors of the coming passes are
known, so each weight visits the device once for all of them, and the products wait in host memory. They are those that
the pass itself would compute, bit for bit: same layer, same input, same batch shape, same autocast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .pinned import PinnedTensors


@dataclass(frozen=True, slots=True)
class ModulationOutputs:
    """What the modulation layers give in one forward pass."""

    outputs: torch.Tensor
    """Those of all layers, one after the other, flat, in host memory."""
    batch: int


class HostLinear(nn.Module):
    """Takes the place of a Linear whose weights stay in host memory."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.linear = linear
        self.device = device
        self.weights = PinnedTensors([*linear.parameters(), *linear.buffers()], device)
        self.output: torch.Tensor | None = None
        """Of the forward pass that is running, on the device; None: it was not foreseen."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.computed(input) if self.output is None else self.output

    @torch.compiler.disable
    def computed(self, input: torch.Tensor) -> torch.Tensor:
        """The product, for which the weights visit the device."""
        with self.visiting(torch.empty(self.weights.bytes, dtype=torch.uint8, device=self.device)):
            return self.linear(input)

    @contextmanager
    def visiting(self, flat: torch.Tensor) -> Iterator[None]:
        """Inside, the weights are in this buffer on the device."""
        self.weights.copy_to(flat)
        self.weights.point_at(self.weights.views_in(flat))
        try:
            yield
        finally:
            self.weights.go_home()


class Modulation:
    """The modulation layers of a transformer, their weights in host memory."""

    def __init__(self, transformer: nn.Module, layers: str, device: torch.device) -> None:
        """`layers`: Family.modulation_layers(). Those that carry an adapter stay as they are."""
        self.transformer = transformer
        self.device = device
        self.layers: list[HostLinear] = []
        for name, layer in list(transformer.named_modules()):
            if re.fullmatch(layers, name) and isinstance(layer, nn.Linear):
                self.layers.append(HostLinear(layer, device))
                transformer.set_submodule(name, self.layers[-1])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Weights that stay in host memory."""
        return [tensor for layer in self.layers for tensor in layer.weights.tensors]

    @torch.no_grad()
    def precompute(self, passes: Sequence[Callable[[], Any]]) -> list[ModulationOutputs]:
        """Of the coming forward passes, each as a call that would do it; it is stopped at the time embedding. To be
        called in the autocast context that they will run in."""
        inputs = [nn.functional.silu(time_embedding(self.transformer, call)) for call in passes]
        results: list[ModulationOutputs] = []
        size = max(layer.weights.bytes for layer in self.layers)
        flat = torch.empty(size, dtype=torch.uint8, device=self.device)
        width = sum(layer.linear.out_features for layer in self.layers)
        start = 0
        for layer in self.layers:
            end = start + layer.linear.out_features
            with layer.visiting(flat):
                for number, input in enumerate(inputs):
                    output, batch = layer.linear(input), input.shape[0]
                    if number == len(results):
                        results.append(ModulationOutputs(_host_buffer(batch * width, output), batch))
                    part = results[number].outputs[batch * start : batch * end]
                    part.copy_(output.flatten(), non_blocking=True)
            start = end
        return results

    @contextmanager
    def using(self, modulation_outputs: ModulationOutputs) -> Iterator[None]:
        """Inside is the forward pass, and its backward pass, that this was computed for."""
        outputs = modulation_outputs.outputs.to(self.device, non_blocking=True)
        widths = [modulation_outputs.batch * layer.linear.out_features for layer in self.layers]
        for layer, output in zip(self.layers, outputs.split(widths), strict=True):
            layer.output = output.view(modulation_outputs.batch, -1)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.output = None


def time_embedding(transformer: nn.Module, forward: Callable[[], Any]) -> torch.Tensor:
    """The embedding of timestep, guidance and pooled text [batch, width] of a forward pass, which is cut off there."""

    def stop(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        raise _Reached(output)

    hook = transformer.time_text_embed.register_forward_hook(stop)
    try:
        forward()
    except _Reached as reached:
        return reached.embedding
    finally:
        hook.remove()
    raise AssertionError("the forward pass has no time embedding")


class _Reached(Exception):
    def __init__(self, embedding: torch.Tensor) -> None:
        super().__init__()
        self.embedding = embedding


def _host_buffer(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(size, dtype=like.dtype, pin_memory=like.device.type == "cuda")
