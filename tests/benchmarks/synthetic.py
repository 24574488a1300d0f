"""Models of any size with random weights, and batches of random tokens, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import nn

from trainer.config.settings import Precision
from trainer.data.resize import Size
from trainer.memory.activation_bytes import StepShape
from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family
from trainer.models.types import Grid, PackedLatents
from trainer.modules import own_parameters
from trainer.quantization.formats import format_of
from trainer.quantization.linear import QuantizedLinear
from trainer.quantization.quantize import large_weights, quantize
from trainer.single_file.load_module import OneDevice, WeightSink
from trainer.training.batch import Batch, TextGroup
from trainer.training.batch_sampler import Position
from trainer.training.flow_matching import draw_sigmas, loss_weights

POOL = 2**22
"""Random numbers that all weights are made of."""


@dataclass(frozen=True)
class RandomModel(EditModel):
    """A base of a full-size model's family whose transformer has random weights."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """diffusers' config of the transformer."""

    def transformer_config(self) -> Mapping[str, Any]:
        return self.config

    def load_transformer(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        precision: Precision | None = None,
        sink: WeightSink | None = None,
    ) -> nn.Module:
        """Weight by weight, on the run's device and from there to where `sink` wants it, as a file is loaded."""
        sink = sink or OneDevice(device)
        pool = (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * 0.02).to(sink.device, dtype)
        transformer = self.empty_transformer()
        large = large_weights(transformer) if format_of(precision) else set()
        sink.begin(transformer)
        for name, leaves in dict(own_parameters(transformer)).items():
            module, place = transformer.get_submodule(name), sink.device_of(name)
            for leaf, parameter in leaves.items():
                if parameter.ndim > 1:
                    values = _drawn(pool, parameter.shape)
                else:
                    values = pool.new_full(parameter.shape, float(leaf != "bias"))
                if leaf == "weight" and name in large:
                    quantized = quantize(values, precision)
                else:
                    setattr(module, leaf, nn.Parameter(values.to(place), requires_grad=False))
            if name in large:
                layer = QuantizedLinear(quantized, module.in_features, module.bias)
                transformer.set_submodule(name, layer.to(place))
            sink.filled(name)
        return transformer.eval().requires_grad_(False)


def random_model(base_model: str, **changes: int) -> RandomModel:
    """The full-size model of this name; `changes`: to its transformer's diffusers config."""
    opened = open_model(base_model)
    config = {**opened.transformer_config(), **changes}
    return RandomModel(**{name: getattr(opened, name) for name in ("base_model", "folder", "policy")}, config=config)


def random_batches(family: Family, config: Mapping[str, Any], shape: StepShape) -> Iterator[Batch]:
    """Micro-batches of this shape, each with noise and timesteps of its own."""
    generator = torch.Generator().manual_seed(1)

    def image(size: Size) -> PackedLatents:
        grid = Grid(size.height // family.patch, size.width // family.patch)
        tokens = torch.randn(shape.batch, grid.height * grid.width, config["in_channels"], generator=generator)
        return PackedLatents(tokens.to(shape.dtype), grid)

    text = {
        name: torch.randn(shape.batch, *own, generator=generator).to(shape.dtype)
        for name, own in family.text_shapes(config, shape.text_controls).items()
    }
    clean = image(shape.target)
    batch = Batch(
        examples=[None] * shape.batch,
        clean=clean,
        noise=clean.tokens,
        controls=tuple(map(image, shape.controls)),
        texts=(TextGroup(list(range(shape.batch)), text),),
        sigmas=torch.empty(0),
        weights=torch.empty(0),
        next_position=Position(0, 0),
    )
    while True:
        sigmas = draw_sigmas("weighted", shape.batch, generator)
        noise = torch.randn(clean.tokens.shape, generator=generator)
        yield replace(batch, noise=noise, sigmas=sigmas, weights=loss_weights("weighted", sigmas))


def _drawn(pool: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return pool.repeat(ceil(shape.numel() / POOL))[: shape.numel()].view(shape).clone()
