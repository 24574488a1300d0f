"""Which examples go into which micro-batch: shuffled by epoch, bucketed by shape, resumable at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from ..encoding.example import Example
from .rng import example_generator


class Position(NamedTuple):
    """A place in the endless sequence of micro-batches."""

    epoch: int
    batch: int


class BatchPlan(NamedTuple):
    """Examples of one shape that share a forward pass, and where the next micro-batch is."""

    epoch: int
    examples: Sequence[Example]
    next_position: Position
    step_examples: int = 0
    """How many examples the optimizer step has in all; 0 as long as it is not known which step this belongs to."""


def epoch_batches(examples: Sequence[Example], seed: int, epoch: int, batch_size: int) -> list[list[Example]]:
    """The micro-batches of one epoch: every example once, in an order that depends on seed and epoch alone.

    Walking the shuffled examples, each goes to the batch of its shape; a batch is emitted when full. What is left at
    the end makes smaller batches.
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
    """Micro-batches from `position` on, without end."""
    epoch, start = position
    while True:
        batches = epoch_batches(examples, seed, epoch, batch_size)
        for number in range(start, len(batches)):
            last = number + 1 == len(batches)
            next_position = Position(epoch + 1, 0) if last else Position(epoch, number + 1)
            yield BatchPlan(epoch, batches[number], next_position)
        epoch, start = epoch + 1, 0


def step_share(stream: Iterator[BatchPlan], size: int, rank: int, world_size: int) -> Iterator[BatchPlan]:
    """What one of `world_size` processes takes of the stream, in steps of `size` micro-batches for each of them.

    A step is the stream's next `size * world` micro-batches, dealt out in turn; `next_position` is where the next step
    begins. Every process knows the whole step, so that what it has in all needs no communication.
    """
    while True:
        step = list(islice(stream, size * world_size))
        examples = sum(len(batch.examples) for batch in step)
        for batch in step[rank::world_size]:
            yield batch._replace(next_position=step[-1].next_position, step_examples=examples)
