"""Forward and backward pass of one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..inference import place
from ..lora.layer import without_lora
from ..models.types import PackedLatents, TextConditioning, has_mask
from .batch import Batch, TextGroup
from .flow_matching import add_noise, example_losses, squared_errors

if TYPE_CHECKING:
    from ..memory.model_parts import ModelComponents


def with_modulation(components: ModelComponents, batches: Sequence[Batch], guidance: float) -> list[Batch]:
    """Return the micro-batches with the modulation outputs of every forward pass, computed ahead."""

    def forward(batch: Batch, group: TextGroup) -> torch.Tensor:
        return _velocity(components, _inputs(components, batch, group), guidance)

    passes = [partial(forward, batch, group) for batch in batches for group in batch.texts]
    with components.autocast():
        outputs = iter(components.placement().precompute(passes))
    return [
        replace(batch, texts=tuple(replace(group, modulation_outputs=next(outputs)) for group in batch.texts))
        for batch in batches
    ]


def micro_step(components: ModelComponents, batch: Batch, step_examples: int, guidance: float) -> torch.Tensor:
    """Run the forward and backward pass of one micro-batch in an optimizer step of `step_examples` examples.

    Adds to the gradients and returns the micro-batch's share of the step's mean loss, a detached float32 scalar. Texts
    that cannot share a forward pass are run one after the other.
    """
    return torch.stack([_group_step(components, batch, group, step_examples, guidance) for group in batch.texts]).sum()


@torch.no_grad()
def measured_losses(components: ModelComponents, batch: Batch, guidance: float) -> torch.Tensor:
    """Return the weighted losses of a micro-batch's examples, float32 `[B]`, without a backward pass."""
    losses = batch.weights.new_empty(len(batch.examples), device=components.device)
    for group in batch.texts:
        forward = components.placement().forward(group.modulation_outputs, masked=has_mask(group.text))
        with components.autocast(), forward:
            inputs = _inputs(components, batch, group)
            velocity = _velocity(components, inputs, guidance)
            losses[group.rows] = example_losses(
                velocity, inputs.clean, inputs.noise, inputs.weights, inputs.token_weights
            )
    return losses


def _group_step(
    components: ModelComponents, batch: Batch, group: TextGroup, step_examples: int, guidance: float
) -> torch.Tensor:
    forward = components.placement().forward(group.modulation_outputs, masked=has_mask(group.text))
    with torch.enable_grad(), components.autocast(), forward:
        inputs = _inputs(components, batch, group)
        base = None if inputs.prior_weights is None else _base_velocity(components, inputs, guidance)
        velocity = _velocity(components, inputs, guidance)
        losses = example_losses(velocity, inputs.clean, inputs.noise, inputs.weights, inputs.token_weights)
        if base is not None:
            losses = losses + squared_errors(velocity, base, inputs.prior_weights) * inputs.weights
        loss = losses.sum() / step_examples
        loss.backward()
    return loss.detach()


@torch.no_grad()
def _base_velocity(components: ModelComponents, inputs: _Inputs, guidance: float) -> torch.Tensor:
    """Return the velocity `[B, tokens, channels]`, in the compute dtype, that the base predicts without the LoRA."""
    with without_lora(components.transformer()):
        return _velocity(components, inputs, guidance)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Inputs of a forward pass, on the device."""

    clean: torch.Tensor
    noise: torch.Tensor
    noisy: PackedLatents
    controls: Sequence[PackedLatents]
    text: TextConditioning
    sigmas: torch.Tensor
    weights: torch.Tensor
    token_weights: torch.Tensor | None
    prior_weights: torch.Tensor | None


def _inputs(components: ModelComponents, batch: Batch, group: TextGroup) -> _Inputs:
    device, dtype = components.device, components.dtype

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
        token_weights=None if batch.token_weights is None else rows_of(batch.token_weights),
        prior_weights=None if batch.prior_weights is None else rows_of(batch.prior_weights),
    )


def _velocity(components: ModelComponents, inputs: _Inputs, guidance: float) -> torch.Tensor:
    family = components.model.family
    return family.predict(components.transformer(), inputs.noisy, inputs.controls, inputs.text, inputs.sigmas, guidance)
