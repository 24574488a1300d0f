"""One micro-batch: from cached tensors to gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from .batches import MicroBatch, Position
from .encode import Encoder, Example, Texts
from .flow import add_noise, draw_sigmas, example_generator, example_losses, loss_weights
from .models.family import PackedLatents, TextConditioning
from .modulation import Modulated
from .sampling import place
from .schema import TimestepType
from .settings import RunSettings

if TYPE_CHECKING:
    from .memory import Parts


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Examples of a micro-batch that can share a forward pass."""

    rows: list[int]
    """Their places in the batch."""
    text: TextConditioning
    modulated: Modulated | None = None
    """What was computed ahead of that forward pass."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch on the CPU, noise drawn; in pinned memory where a CUDA device is to take it."""

    examples: Sequence[Example]
    clean: PackedLatents
    noise: torch.Tensor
    """Packed like `clean.tokens`."""
    controls: tuple[PackedLatents, ...]
    texts: tuple[TextGroup, ...]
    sigmas: torch.Tensor
    """float32 [B]"""
    weights: torch.Tensor
    """Of the losses, float32 [B]."""
    following: Position
    """Where the next step begins."""
    step_examples: int = 0
    """Examples of the optimizer step in all."""


def collate(
    batch: MicroBatch, encoder: Encoder, texts: Texts, timestep_type: TimestepType, settings: RunSettings
) -> Batch:
    """Load a micro-batch from the cache and draw its noise, sigmas and caption dropout, each addressed by seed, epoch
    and the example's row."""
    family, seed = encoder.family, settings.seed
    clean = torch.cat([encoder.latents(example.target) for example in batch.examples])
    noises, sigmas, conditionings = [], [], []
    for example in batch.examples:
        address = (batch.epoch, example.row)
        generator = example_generator(seed, "noise", *address)
        noises.append(torch.randn(clean.shape[1:], generator=generator))
        sigmas.append(draw_sigmas(timestep_type, 1, example_generator(seed, "timestep", *address)))
        dropped = torch.rand((), generator=example_generator(seed, "caption", *address)) < settings.caption_dropout
        conditionings.append(texts.get(encoder.text_key("" if dropped else example.caption, example.controls)))
    controls = zip(*(example.controls for example in batch.examples), strict=True)
    collated = Batch(
        examples=batch.examples,
        clean=family.pack(clean),
        noise=family.pack(torch.stack(noises)).tokens,
        controls=tuple(
            family.pack(torch.cat([encoder.latents(control.latents) for control in group])) for group in controls
        ),
        texts=tuple(
            TextGroup(rows, family.collate_text([conditionings[row] for row in rows]))
            for rows in family.text_groups(conditionings)
        ),
        sigmas=torch.cat(sigmas),
        weights=loss_weights(timestep_type, torch.cat(sigmas)),
        following=batch.following,
        step_examples=batch.step_examples,
    )
    return _pinned(collated) if encoder.parts.device.type == "cuda" else collated


def _pinned(batch: Batch) -> Batch:
    """The batch where a CUDA device takes it from without keeping anyone waiting."""

    def packed(latents: PackedLatents) -> PackedLatents:
        return PackedLatents(latents.tokens.pin_memory(), latents.grid)

    return replace(
        batch,
        clean=packed(batch.clean),
        noise=batch.noise.pin_memory(),
        controls=tuple(map(packed, batch.controls)),
        texts=tuple(
            TextGroup(group.rows, {name: tensor.pin_memory() for name, tensor in group.text.items()})
            for group in batch.texts
        ),
        sigmas=batch.sigmas.pin_memory(),
        weights=batch.weights.pin_memory(),
    )


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


def idle_batch(batch: Batch, passes: int) -> Batch:
    """A batch whose `passes` forward and backward passes give a loss and gradients of 0: for a process that has to keep
    step with others that have more passes to do."""
    return replace(batch, texts=batch.texts[:1] * passes, weights=torch.zeros_like(batch.weights))
