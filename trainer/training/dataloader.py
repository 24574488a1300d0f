"""Loading of micro-batches: images and texts encoded and cached, batches collated ahead in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..config.settings import caches_texts
from ..encoding.encoder import Encoder
from ..encoding.example import Example
from ..encoding.text import TextEmbeddings
from ..errors import BadInput, RunFailed
from ..events import Event, Notice, Progress, RunControl
from ..threads import prefetch
from .batch import Batch, collate
from .batch_sampler import BatchPlan, Position, plan_batches, step_share
from .held_out import HeldOut, split_rows
from .sample_images import SampleImages
from .step import with_modulation

if TYPE_CHECKING:
    from .setup import RunContext


TEXT_BLOCK = 128
"""Examples whose texts are encoded at a time when text embeddings are not cached. A judgement: loading the text encoder
pays off over so many, and their embeddings (about 4 MB each for T5-XXL in bf16) fit host memory."""

PRECOMPUTED_EXAMPLES = 32
"""Examples whose modulation is computed ahead at a time when its weights stay in host memory. A judgement: the weights
are copied to the device once for so many, and the outputs stay small beside the weights."""

SMALL_TARGET = 0.9
"""Share of the control image's area below which a target counts as smaller. A judgement: above it lies only the
rounding of both sizes to whole tokens."""


class BatchLoader:
    """Encodes the dataset and the samples of a run and yields its micro-batches.

    Several processes divide the encoding and the micro-batches among them.
    """

    def __init__(self, context: RunContext) -> None:
        self.dataset, self.params, self.settings = context.dataset, context.params, context.settings
        self.components, self.processes = context.components, context.processes
        self.encoder = Encoder(context.components, context.cache, context.settings)
        on_disk = caches_texts(context.params, context.settings)
        self.texts = TextEmbeddings(self.encoder, context.dataset, on_disk)
        self.samples = SampleImages(context, self.encoder)
        self.examples: list[Example] = []
        self.held_out = HeldOut(context, self.encoder, self.texts)
        self._made_again: set[str] = set()
        self._damage_said = False

    def prepare(self) -> Generator[Event, None, None]:
        """Encode images, samples and (when cached) texts. Raises BadInput."""
        control, processes = self.processes.local_control, self.processes
        yield from self._encode_images()
        yield from self._warn_of_small_targets()
        self.examples, self.held_out.examples = split_rows(
            self.examples, self.settings.seed, self.settings.validation_rows
        )
        if processes.is_main or self.components.plan.sharded:
            yield from self.samples.prepare(self.texts, control)
        yield from self._encode_texts(self.held_out.texts, self.held_out.captions())
        if self.texts.on_disk:
            yield from self._encode_texts(self.texts, chain.from_iterable(map(self._captions, self.examples)))
            self.components.drop("text_encoder")
        yield from self.components.notices()
        self.components.drop("codec")
        yield from self._warn_of_damage()
        processes.sync_controls()

    def _encode_images(self) -> Generator[Progress, None, None]:
        """Encode the images that are not cached; several processes each encode a share, then find all in the cache."""
        control, processes = self.processes.local_control, self.processes
        if processes.world_size > 1:
            with suppress(BadInput):  # raised again below, by all processes
                yield from self.encoder.examples(self.dataset.shard(processes.rank, processes.world_size), control)
            processes.sync_controls()
        self.examples = yield from self.encoder.examples(self.dataset, control)

    def _encode_texts(
        self, texts: TextEmbeddings, captions: Iterable[tuple[Example, str]]
    ) -> Generator[Progress, None, None]:
        """Encode captions to the cache; several processes each encode a share, then find all in the cache."""
        control, processes, captions = self.processes.local_control, self.processes, list(captions)
        if captions:
            yield from texts.encode(captions[processes.rank :: processes.world_size], control)
            processes.sync_controls()
            yield from texts.encode(captions, control)

    def _captions(self, example: Example) -> list[tuple[Example, str]]:
        """Return the captions that an example may be trained with."""
        return [(example, example.caption)] + ([(example, "")] if self.settings.caption_dropout else [])

    def _warn_of_small_targets(self) -> Iterator[Notice]:
        small = sum(map(_has_small_target, self.examples))
        if small:
            yield Notice(
                message=f"{small} of {len(self.examples)} targets are trained at a smaller size than their control "
                "image gets in inference. Raise resolution, or set control_resolution to target."
            )

    def _warn_of_damage(self) -> Iterator[Notice]:
        cache = self.encoder.cache
        if cache.damaged and not self._damage_said:
            self._damage_said = True
            yield Notice(
                message=f"The cache {cache.folder} has damaged entries: they are removed and made again, each as it is "
                "found. If that happens often, the disk or the memory is failing."
            )

    def make_again(self, key: str) -> Generator[Event, None, None]:
        """Make an entry of the cache again that was damaged. Raises RunFailed when that happens to it twice."""
        if key in self._made_again:
            raise RunFailed(
                f"An entry of the cache {self.encoder.cache.folder} was damaged again, right after it was made: the "
                "disk or the memory is failing. Put the cache on another disk (--cache)."
            )
        self._made_again.add(key)
        for example in (*self.examples, *self.held_out.examples):
            if key in (example.target, example.mask, *(control.latents for control in example.controls)):
                self.encoder.encode_again(self.dataset, example)
                self.components.drop("codec")
                break
            captions = [
                own for own in self._captions(example) if self.encoder.text_key(own[1], example.controls) == key
            ]
            if captions:
                texts = self.held_out.texts if example in self.held_out.examples else self.texts
                yield from texts.encode(captions[:1], RunControl())
                self.components.drop("text_encoder")
                break
        yield from self._warn_of_damage()

    def batches(self, position: Position) -> Generator[Batch | Progress, None, None]:
        """Yield the micro-batches from `position` on without end, and Progress while texts are encoded in blocks."""
        plans = plan_batches(self.examples, self.settings.seed, self.params.batch_size, position)
        plans = step_share(plans, self.params.gradient_accumulation, self.processes.rank, self.processes.world_size)
        if self.texts.on_disk:
            yield from self._loaded(plans)
        while True:
            block = list(islice(plans, max(1, TEXT_BLOCK // self.params.batch_size)))
            examples = chain.from_iterable(plan.examples for plan in block)
            captions = chain.from_iterable(map(self._captions, examples))
            yield from self.texts.encode(captions, self.processes.shared_control)
            yield from self._loaded(block)

    def _loaded(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Collate planned batches ahead, with the modulation where the plan keeps it in host memory."""
        if not self.components.plan.modulation_on_host:
            yield from prefetch(plans, self._collate)
            return
        count = max(1, PRECOMPUTED_EXAMPLES // self.params.batch_size)
        with closing(prefetch(plans, self._collate, ahead=count)) as batches:
            while block := list(islice(batches, count)):
                yield from with_modulation(self.components, block, self.settings.training_guidance)

    def _collate(self, plan: BatchPlan) -> Batch:
        return collate(plan, self.encoder, self.texts, self.params.timestep_type, self.settings)


def _has_small_target(example: Example) -> bool:
    target = example.target_size.width * example.target_size.height
    return any(target < SMALL_TARGET * control.size.width * control.size.height for control in example.controls)
