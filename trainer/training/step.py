"""One micro-batch: from cached tensors to gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..inference import place
from ..models.types import PackedLatents, TextConditioning
from .flow_matching import add_noise, example_losses

if TYPE_CHECKING:
    from ..memory.model_parts import Parts
from .batch import Batch, TextGroup


def with_modulation(parts: Parts, batches: Sequence[Batch], guidance: float) -> list[Batch]:
    """The same micro-batches; with each forward pass what the plan lets compute ahead of it."""

    def forward(batch: Batch, group: TextGroup) -> torch.Tensor:
        return _velocity(parts, _inputs(parts, batch, group), guidance)

    passes = [partial(forward, batch, group) for batch in batches for group in batch.texts]
    with _autocast(parts):
        ahead = iter(parts.placement().ahead(passes))
    return [
        replace(batch, texts=tuple(replace(group, modulated=next(ahead)) for group in batch.texts)) for batch in batches
    ]


def micro_step(parts: Parts, batch: Batch, step_examples: int, guidance: float) -> torch.Tensor:
    """Forward and backward of one micro-batch, in an optimizer step of `step_examples` examples in all.

    Adds to the gradients and returns its share of the step's loss (float32, detached): over the step, the mean over
    its examples. Texts that cannot share a forward pass go one after the other.
    """
    return torch.stack([_group_step(parts, batch, group, step_examples, guidance) for group in batch.texts]).sum()


def _group_step(parts: Parts, batch: Batch, group: TextGroup, step_examples: int, guidance: float) -> torch.Tensor:
    with torch.enable_grad(), _autocast(parts), parts.placement().forward(group.modulated):
        inputs = _inputs(parts, batch, group)
        velocity = _velocity(parts, inputs, guidance)
        losses = example_losses(velocity, inputs.clean, inputs.noise, inputs.weights)
        loss = losses.sum() / step_examples
        loss.backward()
    return loss.detach()


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a forward pass sees, on the device."""

    clean: torch.Tensor
    noise: torch.Tensor
    noisy: PackedLatents
    controls: Sequence[PackedLatents]
    text: TextConditioning
    sigmas: torch.Tensor
    weights: torch.Tensor


def _inputs(parts: Parts, batch: Batch, group: TextGroup) -> _Inputs:
    device, dtype = parts.device, parts.dtype

    def rows_of(tensor: torch.Tensor) -> torch.Tensor:
        chosen = tensor if len(group.rows) == len(batch.examples) else tensor[group.rows]
        return chosen.to(device, non_blocking=True)

    clean, noise, sigmas = rows_of(batch.clean.tokens).float(), rows_of(batch.noise), rows_of(batch.sigmas)
    return _Inputs(
        clean=clean,
        noise=noise,
        noisy=PackedLatents(add_noise(clean, noise, sigmas).to(dtype), batch.clean.grid),
        controls=[PackedLatents(rows_of(c.tokens).to(dtype), c.grid) for c in batch.controls],
        text=place(group.text, device, dtype),
        sigmas=sigmas,
        weights=rows_of(batch.weights),
    )


def _velocity(parts: Parts, inputs: _Inputs, guidance: float) -> torch.Tensor:
    family = parts.model.family
    return family.predict(parts.transformer(), inputs.noisy, inputs.controls, inputs.text, inputs.sigmas, guidance)


def _autocast(parts: Parts) -> torch.autocast:
    return torch.autocast(parts.device.type, parts.dtype, enabled=parts.dtype != torch.float32)
