"""Batch sampler: examples shuffled each epoch, bucketed by shape, resumable at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from ..encoding.example import Example
from .rng import example_generator


class Position(NamedTuple):
    """Data position: an index into the endless sequence of micro-batches."""

    epoch: int
    batch: int


START = Position(0, 0)


class BatchPlan(NamedTuple):
    """Examples of one shape that form a micro-batch, and the position after it."""

    epoch: int
    examples: Sequence[Example]
    next_position: Position
    step_examples: int = 0
    """Number of examples in the whole optimizer step; 0 until `step_share` has grouped the steps."""


def epoch_batches(examples: Sequence[Example], seed: int, epoch: int, batch_size: int) -> list[list[Example]]:
    """Return the micro-batches of one epoch: every example once, in an order that depends on seed and epoch alone.

    Each of the shuffled examples joins the open batch of its shape; full batches are emitted in turn, and the open ones
    at the end as smaller batches.
    """
    order = torch.randperm(len(examples), generator=example_generator(seed, "order", epoch)).tolist()
    batches: list[list[Example]] = []
    filling: dict[tuple, list[Example]] = {}
    for index in order:
        example = examples[index]
        batch = filling.setdefault(example.shape, [])
        batch.append(example)
        if len(batch) == batch_size:
            batches.append(filling.pop(example.shape))
    return batches + list(filling.values())


def plan_batches(examples: Sequence[Example], seed: int, batch_size: int, position: Position) -> Iterator[BatchPlan]:
    """Yield the micro-batches from `position` on, without end."""
    epoch, start = position
    while True:
        batches = epoch_batches(examples, seed, epoch, batch_size)
        for number in range(start, len(batches)):
            last = number + 1 == len(batches)
            next_position = Position(epoch + 1, 0) if last else Position(epoch, number + 1)
            yield BatchPlan(epoch, batches[number], next_position)
        epoch, start = epoch + 1, 0


def step_share(stream: Iterator[BatchPlan], size: int, rank: int, world_size: int) -> Iterator[BatchPlan]:
    """Yield the micro-batches of one of `world_size` processes, `size` for each optimizer step.

    A step is the next `size * world_size` micro-batches, dealt out in turn. Every process sees the whole step, so that
    counting its examples needs no communication.
    """
    while True:
        step = list(islice(stream, size * world_size))
        examples = sum(len(batch.examples) for batch in step)
        for batch in step[rank::world_size]:
            yield batch._replace(next_position=step[-1].next_position, step_examples=examples)
