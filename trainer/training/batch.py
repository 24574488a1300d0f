"""Micro-batches: cached tensors collated, with their noise, noise levels and loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..config.request import TimestepType
from ..config.settings import RunSettings, has_masks
from ..encoding.encoder import Encoder
from ..encoding.example import Example
from ..encoding.text import TextEmbeddings
from ..memory.modulation import ModulationOutputs
from ..memory.pinned import page_locked_copy
from ..models.types import PackedLatents, TextConditioning
from .batch_sampler import START, BatchPlan, Position
from .flow_matching import draw_sigmas, loss_weights, mask_weights
from .rng import example_generator


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Examples of a micro-batch that can share a forward pass."""

    rows: list[int]
    """Row numbers of the examples in the batch."""
    text: TextConditioning
    """Conditioning of these rows, `[rows, ...]` in the text encoder's dtype."""
    modulation_outputs: ModulationOutputs | None = None
    """Outputs of the modulation layers, where they are computed ahead of the forward pass."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of B examples on the CPU, in pinned memory when the device is CUDA."""

    examples: Sequence[Example]
    clean: PackedLatents
    noise: torch.Tensor
    """float32 `[B, tokens, channels]`, packed like `clean.tokens`."""
    controls: tuple[PackedLatents, ...]
    texts: tuple[TextGroup, ...]
    sigmas: torch.Tensor
    """Noise levels, float32 `[B]` in 0..1."""
    weights: torch.Tensor
    """Loss weights, float32 `[B]`."""
    next_position: Position = START
    """Data position of the next optimizer step."""
    token_weights: torch.Tensor | None = None
    """Loss weights of the target's tokens, float32 `[B, tokens]`; None where all count alike."""
    prior_weights: torch.Tensor | None = None
    """Weights of the tokens in the loss that keeps what the base draws, float32 `[B, tokens]`; None without it."""
    step_examples: int = 0
    """Number of examples in the whole optimizer step."""


def collate(
    batch: BatchPlan, encoder: Encoder, texts: TextEmbeddings, timestep_type: TimestepType, settings: RunSettings
) -> Batch:
    """Load a micro-batch from the cache and draw its noise, noise levels and caption dropout.

    Everything random comes from a generator addressed by seed, epoch and the example's row.
    """
    seed = settings.seed
    drawn = []
    for example in batch.examples:
        address = (batch.epoch, example.row)
        dropped = torch.rand((), generator=example_generator(seed, "caption", *address)) < settings.caption_dropout
        drawn.append(
            Drawn(
                noise=example_generator(seed, "noise", *address),
                sigma=draw_sigmas(timestep_type, 1, example_generator(seed, "timestep", *address)),
                text=texts.get(encoder.text_key("" if dropped else example.caption, example.controls)),
            )
        )
    assembled = assemble(encoder, batch.examples, drawn, timestep_type)
    return replace(assembled, next_position=batch.next_position, step_examples=batch.step_examples)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Draws of one example of a micro-batch."""

    noise: torch.Generator
    """Generator that its noise is drawn from."""
    sigma: torch.Tensor
    """Noise level, float32 `[1]` in 0..1."""
    text: TextConditioning
    """Conditioning of its caption, `[1, ...]` in the text encoder's dtype."""


def assemble(
    encoder: Encoder, examples: Sequence[Example], drawn: Sequence[Drawn], timestep_type: TimestepType
) -> Batch:
    """Load examples of one shape from the cache as a micro-batch, each with what is drawn for it."""
    family = encoder.family
    clean = torch.cat([encoder.latents(example.target) for example in examples])
    noises = [torch.randn(clean.shape[1:], generator=own.noise) for own in drawn]
    sigmas, conditionings = torch.cat([own.sigma for own in drawn]), [own.text for own in drawn]
    controls = zip(*(example.controls for example in examples), strict=True)
    collated = Batch(
        examples=examples,
        clean=family.pack(clean),
        noise=family.pack(torch.stack(noises)).tokens,
        controls=tuple(
            family.pack(torch.cat([encoder.latents(control.latents) for control in group])) for group in controls
        ),
        texts=tuple(
            TextGroup(rows, family.collate_text([conditionings[row] for row in rows]))
            for rows in family.text_groups(conditionings)
        ),
        sigmas=sigmas,
        weights=loss_weights(timestep_type, sigmas),
    )
    if has_masks(encoder.settings):
        collated = _masked(collated, encoder)
    return _pinned(collated) if encoder.components.device.type == "cuda" else collated


def _masked(batch: Batch, encoder: Encoder) -> Batch:
    """Add the token weights that the examples' masks give."""
    every = torch.ones(1, batch.clean.tokens.shape[1])
    masks = torch.cat([encoder.masks.get(one.mask) if one.mask else every for one in batch.examples])
    settings = encoder.settings
    return replace(
        batch,
        token_weights=mask_weights(masks, settings.mask_min),
        prior_weights=settings.mask_prior * mask_weights(1 - masks, 0.0) if settings.mask_prior else None,
    )


def _pinned(batch: Batch) -> Batch:
    """Copy the tensors to page-locked memory, from which copies to a CUDA device are asynchronous."""

    def packed(latents: PackedLatents) -> PackedLatents:
        return PackedLatents(page_locked_copy(latents.tokens), latents.grid)

    return replace(
        batch,
        clean=packed(batch.clean),
        noise=page_locked_copy(batch.noise),
        controls=tuple(map(packed, batch.controls)),
        texts=tuple(
            TextGroup(group.rows, {name: page_locked_copy(tensor) for name, tensor in group.text.items()})
            for group in batch.texts
        ),
        sigmas=page_locked_copy(batch.sigmas),
        weights=page_locked_copy(batch.weights),
        token_weights=None if batch.token_weights is None else page_locked_copy(batch.token_weights),
        prior_weights=None if batch.prior_weights is None else page_locked_copy(batch.prior_weights),
    )


def idle_batch(batch: Batch, passes: int) -> Batch:
    """Return a batch whose `passes` forward and backward passes give a loss and gradients of 0.

    Lets a process take part in the collective passes of others that have more of them.
    """
    return replace(batch, texts=batch.texts[:1] * passes, weights=torch.zeros_like(batch.weights))
