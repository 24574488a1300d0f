"""Modulation computed ahead of the steps, its weights in host memory.

A third of a transformer's weights multiply one vector a sample, or two, which depend on the timestep and the pooled
text alone. The vectors of the coming passes are known, so each weight is copied to the device once for all of them, and
the outputs wait in host memory. They equal those of the pass itself bit for bit: same layer, input, batch shape and
autocast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .pinned import BufferPool, PinnedTensors


@dataclass(frozen=True, slots=True)
class ModulationOutputs:
    """Outputs of the modulation layers for one forward pass."""

    outputs: torch.Tensor
    """Outputs of all layers in turn, flat, in host memory, in the compute dtype."""
    batch: int
    """Examples."""


class HostLinear(nn.Module):
    """Stands for a Linear whose weights stay in host memory."""

    def __init__(self, linear: nn.Linear, weights: PinnedTensors, rows: int, device: torch.device) -> None:
        """`weights`: all tensors of `linear`; `rows`: see `Family.modulation_rows`."""
        super().__init__()
        self.linear = linear
        self.device = device
        self.weights = weights
        self.rows = rows
        self.output: torch.Tensor | None = None
        """Output [rows * B, out] in the compute dtype, precomputed for the running forward pass, on the device; or
        None."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the output [rows * B, out] in the compute dtype, precomputed or from `input` [rows * B, in]."""
        return self.compute(input) if self.output is None else self.output

    @torch.compiler.disable()
    def compute(self, input: torch.Tensor) -> torch.Tensor:
        """Copy the weights to the device and multiply `input` [rows * B, in]: [rows * B, out] in the compute dtype."""
        with self.on_device(torch.empty(self.weights.bytes, dtype=torch.uint8, device=self.device)):
            return self.linear(input)

    @contextmanager
    def on_device(self, flat: torch.Tensor) -> Iterator[None]:
        """Context in which the weights lie in `flat`, a flat uint8 device buffer."""
        self.weights.copy_to(flat)
        self.weights.point_at(self.weights.views_in(flat))
        try:
            yield
        finally:
            self.weights.point_at_host()


def modulation_linears(transformer: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """Find the Linears named by the pattern `layers`, `Family.modulation_layers()`, without those that have a LoRA."""
    return {
        name: layer
        for name, layer in transformer.named_modules()
        if re.fullmatch(layers, name) and isinstance(layer, nn.Linear)
    }


class Modulation:
    """Modulation layers of a transformer, with their weights in host memory."""

    def __init__(
        self,
        transformer: nn.Module,
        layers: Mapping[str, tuple[nn.Linear, PinnedTensors]],
        rows: Callable[[str], int],
        device: torch.device,
    ) -> None:
        """Replace the Linears `layers`, by name, as `modulation_linears` finds them, each with all of its tensors.
        `rows`: vectors of each example that the layer of a name is given."""
        self.transformer = transformer
        self.device = device
        self._buffers = BufferPool(device)
        self.layers: list[HostLinear] = []
        for name, (layer, weights) in layers.items():
            self.layers.append(HostLinear(layer, weights, rows(name), device))
            transformer.set_submodule(name, self.layers[-1])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Weights in host memory, any shape and dtype."""
        return [tensor for layer in self.layers for tensor in layer.weights.tensors]

    @torch.no_grad()
    def precompute(self, passes: Sequence[Callable[[], Any]]) -> list[ModulationOutputs]:
        """Compute the outputs for coming forward passes. Each of `passes` runs the transformer and is stopped at the
        time embedding. To be called in the autocast context in which the passes will run."""
        inputs = [nn.functional.silu(time_embedding(self.transformer, call)) for call in passes]
        results: list[ModulationOutputs] = []
        size = max(layer.weights.bytes for layer in self.layers)
        flat = torch.empty(size, dtype=torch.uint8, device=self.device)
        width = sum(layer.rows * layer.linear.out_features for layer in self.layers)
        rows = max(layer.rows for layer in self.layers)
        start = 0
        for layer in self.layers:
            end = start + layer.rows * layer.linear.out_features
            with layer.on_device(flat):
                for number, input in enumerate(inputs):
                    batch = input.shape[0] // rows
                    output = layer.linear(input[: layer.rows * batch])
                    if number == len(results):
                        flat_outputs = self._buffers.take([batch * width], output.dtype)
                        results.append(ModulationOutputs(flat_outputs, batch))
                    part = results[number].outputs[batch * start : batch * end]
                    part.copy_(output.flatten(), non_blocking=True)
            start = end
        return results

    @contextmanager
    def using(self, modulation_outputs: ModulationOutputs) -> Iterator[None]:
        """Context for the forward and backward pass that `modulation_outputs` was computed for."""
        outputs = modulation_outputs.outputs.to(self.device, non_blocking=True)
        widths = [modulation_outputs.batch * layer.rows * layer.linear.out_features for layer in self.layers]
        for layer, output in zip(self.layers, outputs.split(widths), strict=True):
            layer.output = output.view(-1, layer.linear.out_features)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.output = None


def time_embedding(transformer: nn.Module, forward: Callable[[], Any]) -> torch.Tensor:
    """Run `forward` up to the embedding of timestep, guidance and pooled text, [B, width] in the compute dtype, or
    [2B, width] with the embeddings of timestep 0 at the end."""

    def stop(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        raise _Reached(output)

    hook = transformer.get_submodule("time_text_embed").register_forward_hook(stop)
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
