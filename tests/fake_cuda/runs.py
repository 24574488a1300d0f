"""The trainer's own path on a fake card: plan, load, place, adapt, checkpoint, stream, step, and sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any
from unittest.mock import patch

import torch
from diffusers import ModelMixin
from torch import nn

from tests.benchmarks.synthetic import RandomModel, random_batches, random_model
from trainer.config.request import MultiImageParams, RequestParams, TrainingParams
from trainer.config.settings import Precision, RunSettings
from trainer.data.resize import Size
from trainer.device import CONSUMER_LIMIT, DeviceInfo
from trainer.events import drain
from trainer.inference import DenoiseInputs, DenoiseOptions, denoise
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.memory.planner import make_plan
from trainer.models.types import Grid, ImageCodec, PackedLatents
from trainer.modules import blocks_of
from trainer.quantization.formats import FORMATS, Quantization, QuantizedWeight, format_of
from trainer.quantization.linear import QuantizedLinear
from trainer.quantization.quantize import large_weights, quantize
from trainer.single_file.load_module import WeightSink
from trainer.training.flow_matching import _weight_table
from trainer.training.optim import build_optimizer
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import Trainable, build_trainable

from .card import Card, fake_cuda
from .log import Log

NAMES = {
    "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "qwen": "Qwen/Qwen-Image-Edit",
    "2511": "Qwen/Qwen-Image-Edit-2511",
    "klein 4B": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein 9B": "black-forest-labs/FLUX.2-klein-base-9B",
}
PARAMS = TrainingParams(caption_column="c", control_image_column="b", image_column="a", cache_text_embeddings=True)
PARAMS_OF_TWO = MultiImageParams(caption_column="c", control_image_columns=["b", "d"], image_column="a")
DEVICE = torch.device("cuda")  # without an index, as `default_device` gives it
HOST = 64_000_000_000
"""Bytes of free host memory, as in docs/memory.md."""


@dataclass(frozen=True)
class FakeModel(RandomModel):
    """A full-size model whose transformer has no values."""

    stored: str | None = None
    """Format that the file holds the large weights in, whatever the run's precision; None for a plain file."""

    def load_transformer(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        precision: Precision | None = None,
        sink: WeightSink | None = None,
    ) -> nn.Module:
        """Return the transformer on the CPU; in a fake card's context its weights have no storage."""
        transformer = self.family.bare_transformer(self.transformer_config())
        for module in list(transformer.modules()):
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, leaf, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name in large_weights(transformer) if self.stored or format_of(precision) else ():
            layer = transformer.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            quantized, bias = self._quantized(layer.weight.detach(), precision), layer.bias
            bias = None if bias is None else bias.detach()
            transformer.set_submodule(name, QuantizedLinear(quantized, layer.in_features, bias))
        return transformer.eval().requires_grad_(False)

    def load_codec(self, device: torch.device | str, dtype: torch.dtype) -> ImageCodec:
        """Return the VAE on the CPU; in a fake card's context its weights have no storage."""
        vae = self.family.vae_file.model.from_config(dict(self.family.vae_config))
        assert isinstance(vae, ModelMixin)
        nn.Module.to(vae, dtype)  # ModelMixin decorates `to`, which hides its types
        return self.family.wrap_vae(vae.eval().requires_grad_(False), device, "")

    def _quantized(self, weight: torch.Tensor, precision: Precision | None) -> QuantizedWeight:
        if self.stored is None:
            assert precision is not None
            return quantize(weight, precision)
        values = weight.to(FORMATS[self.stored].storage_dtype)
        return QuantizedWeight(values, torch.ones(()), Quantization(self.stored))


def fake_model(which: str, stored: str | None = None, **changes: int) -> FakeModel:
    """The full-size model of a family; `changes`: to its transformer's diffusers config."""
    model = random_model(NAMES[which], **changes)
    fields = {name: getattr(model, name) for name in ("base_model", "folder", "policy", "config")}
    return FakeModel(**fields, stored=stored)


def device_info(card: Card, host: int = HOST) -> DeviceInfo:
    """Describe a fake card on Linux to the planner, with `host` bytes of free host memory."""
    fast: set[Precision] = {
        row.precision
        for row in FORMATS.values()
        if row.precision and row.capability and row.capability <= card.capability and card.memory < CONSUMER_LIMIT
    }
    return DeviceInfo(
        kind="cuda",
        free=card.memory,
        host=host,
        capability=card.capability,
        bf16=card.capability >= (8, 0),
        fast_precisions=frozenset(fast),
        preferred_precisions=frozenset(fast),
        compiler=True,
        expandable_segments=True,
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """A training step, or the sampling of an image."""

    peak: int
    """Bytes on the card at its peak."""
    syncs: list[str]
    page_locked: int
    """Bytes of host memory that were page-locked in it."""
    flops: Counter[str]
    bytes: Counter[str]
    kernels: Counter[str]
    """Work by kind: see `Traffic`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training on a fake card, and what it took."""

    plan: Plan
    log: Log
    loaded: int
    """Bytes on the card before the first step, optimizer state included."""
    hosted: int
    """Bytes of host memory then."""
    saved: list[int]
    """Bytes on the card that the forward pass of each block but the last left there, in the last step."""
    steps: list[Phase]
    sampling: Phase | None
    """The denoising of an image."""
    decoding: Phase | None
    """The VAE's part in it, where the transformer need not leave the card for it."""

    @property
    def peak(self) -> int:
        """Bytes on the card at the peak of all steps."""
        return max(step.peak for step in self.steps)


def run_on(
    card: Card,
    model: FakeModel,
    settings: RunSettings,
    steps: int = 2,
    host: int = 64_000_000_000,
    sample: bool = False,
    params: RequestParams = PARAMS,
) -> Run:
    """Plan a LoRA of rank 16 for the card, train `steps` steps of it there, and where asked draw a sample."""
    with patch.object(torch.cuda, "is_available", return_value=True):
        plan = make_plan(model, params, settings, device_info(card, host))
    return run_plan(card, model, settings, plan, steps, sample, params)


def run_plan(
    card: Card,
    model: FakeModel,
    settings: RunSettings,
    plan: Plan,
    steps: int,
    sample: bool,
    params: RequestParams = PARAMS,
) -> Run:
    """Train `steps` steps of a plan on the card, and where asked draw a sample."""
    with fake_cuda(card) as log:
        return _run(log, model, settings, plan, steps, sample, params)


def _run(
    log: Log, model: FakeModel, settings: RunSettings, plan: Plan, steps: int, sample: bool, params: RequestParams
) -> Run:
    _weight_table.cache_clear()  # a cached tensor belongs to the fake card that it was made on
    components = ModelComponents(model, DEVICE, plan)
    trainable = build_trainable(components, params, settings)
    optimizer = _with_state(build_optimizer(trainable.parameters, settings, 1e-4))
    marks: list[int] = []
    for block in blocks_of(components.transformer()):
        block.register_forward_pre_hook(lambda *_: marks.append(log.device.now), prepend=True)
    log.mark("loaded")
    loaded, hosted = log.device.now, log.host.now
    shape = step_shape(model.family, params, settings, plan)
    batches = islice(random_batches(model.family, model.transformer_config(), shape), steps)
    done = []
    for batch in batches:
        marks.clear()
        done.append(_step(log, components, trainable, optimizer, batch))
    forward = marks[: len(blocks_of(components.transformer()))]  # a checkpointed block runs again later
    saved = [after - before for before, after in pairwise(forward)]
    drawn = _sample(log, components, trainable, len(params.columns.controls)) if sample else (None, None)
    return Run(plan, log, loaded, hosted, saved, done, *drawn)


def _with_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let the optimizer make its state, as a first step does, so that the next one is as large as any."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _step(
    log: Log, components: ModelComponents, trainable: Trainable, optimizer: torch.optim.Optimizer, batch: Any
) -> Phase:
    before = _Before(log)
    (batch,) = with_modulation(components, [batch], 1.0)
    micro_step(components, batch, 1, 1.0)
    torch.nn.utils.clip_grad_norm_(list(trainable.parameters.values()), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return before.phase("step")


def _sample(log: Log, components: ModelComponents, trainable: Trainable, controls: int) -> tuple[Phase, Phase | None]:
    """Draw one image of one step from so many control images: the denoising and, where parts share the card, the
    decoding."""
    before = _Before(log)
    with trainable.exported_values(torch.bfloat16):
        latents = drain(denoise(components, *sample_inputs(components.model, controls=controls)))
        sampling = before.phase("sampling")
        if components.plan.offload != "auto":
            return sampling, None  # the transformer leaves the card first
        before = _Before(log)
        with torch.no_grad():
            components.codec().decode(components.model.family.denormalize(latents))
    return sampling, before.phase("decoding")


def sample_inputs(
    model: Any, side: int = 1024, steps: int = 1, controls: int = 1
) -> tuple[DenoiseInputs, DenoiseOptions]:
    """Random inputs of an image of `side` x `side` pixels, with a negative prompt where the family uses one."""
    family, size = model.family, Size(side, side)
    control = family.control_size(size, size, "inference")
    grid = Grid(control.height // family.patch, control.width // family.patch)
    channels = model.transformer_config()["in_channels"]
    seen = family.text_control_size(size, control)
    text = {
        name: torch.randn(1, *shape)
        for name, shape in family.text_shapes(model.transformer_config(), controls * [seen]).items()
    }
    options = DenoiseOptions.for_variant(family.variant, steps, 0.0, 1)
    negative = dict(text) if family.negative_prompt("", options.guidance) is not None else None
    latents = [PackedLatents(torch.randn(1, grid.height * grid.width, channels), grid) for _ in range(controls)]
    return DenoiseInputs(latents, text, negative, size), options


class _Before:
    """The log's counts at the beginning of a phase."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.syncs, self.locked = len(log.syncs), len(log.page_locked)
        self.work = [Counter(counts) for counts in self._counts()]

    def _counts(self) -> list[Counter[str]]:
        traffic = self.log.traffic
        return [traffic.flops, traffic.bytes, traffic.kernels]

    def phase(self, name: str) -> Phase:
        """End the phase."""
        log, peak = self.log, self.log.device.peak
        log.mark(name)
        work = [after - before for after, before in zip(self._counts(), self.work, strict=True)]
        return Phase(peak, log.syncs[self.syncs :], sum(log.page_locked[self.locked :]), *work)
