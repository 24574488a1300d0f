"""Held-out rows of a run: which they are, and their loss at fixed noise levels."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ..config.request import RequestParams
from ..config.settings import RunSettings
from ..encoding.encoder import Encoder
from ..encoding.example import Example
from ..encoding.text import TextEmbeddings
from ..errors import BadInput
from ..events import Progress
from .batch import Batch, Drawn, assemble
from .flow_matching import fixed_sigmas
from .rng import address_number, example_generator
from .step import measured_losses, with_modulation

if TYPE_CHECKING:
    from .setup import RunContext


LEVELS = 4
"""Noise levels at which a row is measured. A judgement: one in each quarter of what training draws."""

MEASURED_TOGETHER = 32
"""Passes whose modulation is computed ahead at a time, as in training."""

TRAINING_PASSES = 3
"""Forward passes that an example's training takes as long as: its own, and a backward pass of about two. Checkpointed
blocks add one; the estimate of the cost is then too high."""


def held_out_count(rows: int, amount: float) -> int:
    """Return how many of `rows` are held out by the setting validation_rows. Raises BadInput when none would be left to
    train on."""
    if not amount or not rows:
        return 0
    if amount > 1 and amount != int(amount):
        raise BadInput(f"validation_rows: {amount:g} is no whole number of rows; a share is below 1.")
    count = int(amount) if amount >= 1 else max(1, round(rows * amount))
    if count >= rows:
        raise BadInput(
            f"validation_rows: {amount:g} would hold out {count} of {rows} usable rows and leave none to train on; "
            "lower it."
        )
    return count


def split_rows(examples: Sequence[Example], seed: int, amount: float) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on and the held-out ones, each in their order.

    Whether a row is among the held-out depends on seed and row number: more rows displace few of them. Raises BadInput
    when none would be left to train on.
    """
    count = held_out_count(len(examples), amount)
    chosen = sorted(examples, key=lambda example: address_number(seed, "held out", example.row))[:count]
    rows = {example.row for example in chosen}
    return [one for one in examples if one.row not in rows], [one for one in examples if one.row in rows]


def measuring_cost(count: int, params: RequestParams, settings: RunSettings, world_size: int = 1) -> str | None:
    """Describe what measuring the loss of `count` held-out rows takes; None for no rows."""
    if not count:
        return None
    every = settings.validate_every or params.sample_every
    trained = every * params.batch_size * params.gradient_accumulation * world_size * TRAINING_PASSES
    percent, rows = 100 * count * LEVELS / trained, "1 row" if count == 1 else f"{count} rows"
    return (
        f"held-out loss of {rows} every {every} steps: {count * LEVELS} forward passes, about "
        f"{percent:.{0 if percent >= 10 else 1}f} % more time"
    )


class HeldOut:
    """Measures the loss of rows that are not trained on.

    Each row is measured alone, at `LEVELS` noise levels, with its own caption and with noise that depends on seed and
    row: equal weights give equal numbers, whatever the batch size, the number of processes and the step.
    """

    def __init__(self, context: RunContext, encoder: Encoder, texts: TextEmbeddings) -> None:
        """`texts` are those of the rows that are trained on. Where they are encoded in blocks, the few that are needed
        again and again are kept on disk."""
        self.components, self.processes = context.components, context.processes
        self.params, self.settings = context.params, context.settings
        self.encoder = encoder
        self.texts = texts if texts.on_disk else TextEmbeddings(encoder, context.dataset, on_disk=True)
        self.examples: list[Example] = []

    def captions(self) -> list[tuple[Example, str]]:
        """Return the captions to encode."""
        return [(example, example.caption) for example in self.examples]

    def loss(self) -> Generator[Progress, None, float]:
        """Return the mean loss over all rows and noise levels; several processes divide the rows.

        With sharded weights every pass is collective: a process with fewer rows measures one of them again.
        """
        processes, count = self.processes, len(self.examples)
        own = self.examples[processes.rank :: processes.world_size]
        share = math.ceil(count / processes.world_size)
        measured = [*own, *self.examples[: share - len(own)]]
        losses: list[float] = []
        for batch in self._with_modulation(
            self._batch(example, level) for example in measured for level in range(LEVELS)
        ):
            losses.append(measured_losses(self.components, batch, self.settings.training_guidance).item())
            yield Progress(phase="validating", done=len(losses), total=share * LEVELS)
        gathered = processes.all_gather_object(losses[: len(own) * LEVELS])
        # fsum rounds once, so that the order of the rows makes no difference.
        return math.fsum(loss for part in gathered for loss in part) / (count * LEVELS)

    def _batch(self, example: Example, level: int) -> Batch:
        drawn = Drawn(
            noise=example_generator(self.settings.seed, "held-out noise", example.row, level),
            sigma=fixed_sigmas(self.params.timestep_type, LEVELS)[level : level + 1],
            text=self.texts.get(self.encoder.text_key(example.caption, example.controls)),
        )
        return assemble(self.encoder, [example], [drawn], self.params.timestep_type)

    def _with_modulation(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Compute modulation ahead where the plan keeps its weights in host memory."""
        if not self.components.plan.modulation_on_host:
            yield from batches
            return
        while block := list(islice(batches, MEASURED_TOGETHER)):
            yield from with_modulation(self.components, block, self.settings.training_guidance)
