"""From rows to micro-batches ready to train on: everything encoded, cached and loaded ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..config.request import TrainingParams
from ..config.settings import RunSettings
from ..distributed.processes import SingleProcess
from ..encoding.cache import TensorCache
from ..encoding.encoder import Encoder
from ..encoding.example import Example
from ..encoding.text import TextEmbeddings
from ..errors import BadInput
from ..events import Event, Notice, Progress
from ..memory.model_parts import ModelComponents
from ..threads import prefetch
from .batch import Batch, collate
from .batch_sampler import BatchPlan, Position, plan_batches, step_share
from .run_folder import RunFolder
from .sample_images import SampleImages
from .step import with_modulation

if TYPE_CHECKING:
    from ..data.dataset import EditDataset


TEXT_BLOCK = 128
"""Examples whose texts are encoded at a time when text embeddings are not cached."""


PRECOMPUTED_EXAMPLES = 32
"""Examples that the modulation is computed ahead for at a time, when its weights stay in host memory."""


class BatchLoader:
    """What one run trains on and draws. Several processes share the encoding and the micro-batches out."""

    def __init__(
        self,
        dataset: EditDataset,
        params: TrainingParams,
        settings: RunSettings,
        run: RunFolder,
        components: ModelComponents,
        cache: TensorCache,
        processes: SingleProcess,
    ) -> None:
        self.dataset, self.params, self.settings = dataset, params, settings
        self.components, self.processes = components, processes
        self.encoder = Encoder(components, cache, settings)
        self.texts = TextEmbeddings(self.encoder, dataset, on_disk=params.cache_text_embeddings)
        self.samples = SampleImages(run, params, self.encoder)
        self.examples: list[Example] = []

    def prepare(self) -> Generator[Event, None, None]:
        """Encode images, samples and (when cached) texts. Raises BadInput."""
        local_control = self.processes.local_control
        yield from self._encode_images()
        yield from self._warn_of_small_targets()
        if self.processes.is_main or self.components.plan.sharded:
            yield from self.samples.prepare(self.dataset, self.texts, local_control)
        if self.texts.on_disk:
            captions = list(chain.from_iterable(map(self._captions, self.examples)))
            yield from self.texts.encode(captions[self.processes.rank :: self.processes.world_size], local_control)
            self.processes.sync_controls()
            yield from self.texts.encode(captions, local_control)
            self.components.drop("text_encoder")
        self.components.drop("codec")
        self.processes.sync_controls()

    def _encode_images(self) -> Generator[Progress, None, None]:
        """Encode what the cache lacks; several processes share that out, then each finds everything there."""
        local_control = self.processes.local_control
        if self.processes.world_size > 1:
            with suppress(BadInput):  # which all of them find in the whole
                yield from self.encoder.examples(
                    self.dataset.share(self.processes.rank, self.processes.world_size), local_control
                )
            self.processes.sync_controls()
        self.examples = yield from self.encoder.examples(self.dataset, local_control)

    def _captions(self, example: Example) -> list[tuple[Example, str]]:
        """The captions that an example may be trained with."""
        return [(example, example.caption)] + ([(example, "")] if self.settings.caption_dropout else [])

    def _warn_of_small_targets(self) -> Iterator[Notice]:
        small = sum(
            1
            for example in self.examples
            if example.target_size.width * example.target_size.height
            < 0.9 * example.controls[0].size.width * example.controls[0].size.height
        )
        if small:
            yield Notice(
                message=f"{small} of {len(self.examples)} targets are trained at a smaller size than their control "
                "image gets in inference. Raise resolution, or set control_resolution to target."
            )

    def batches(self, position: Position) -> Iterator[Batch | Progress]:
        """Micro-batches ready to train on, loaded ahead by a thread; Progress while texts are encoded in blocks."""
        stream = plan_batches(self.examples, self.settings.seed, self.params.batch_size, position)
        stream = step_share(stream, self.params.gradient_accumulation, self.processes.rank, self.processes.world_size)
        if self.texts.on_disk:
            yield from self._loaded(stream)
        while True:
            block = list(islice(stream, max(1, TEXT_BLOCK // self.params.batch_size)))
            examples = chain.from_iterable(batch.examples for batch in block)
            yield from self.texts.encode(
                chain.from_iterable(map(self._captions, examples)), self.processes.shared_control
            )
            yield from self._loaded(block)

    def _loaded(self, stream: Iterable[BatchPlan]) -> Iterator[Batch]:
        if not self.components.plan.modulation_on_host:
            yield from prefetch(stream, self._collate)
            return
        count = max(1, PRECOMPUTED_EXAMPLES // self.params.batch_size)
        with closing(prefetch(stream, self._collate, ahead=count)) as batches:
            while block := list(islice(batches, count)):
                yield from with_modulation(self.components, block, self.settings.training_guidance)

    def _collate(self, batch: BatchPlan) -> Batch:
        return collate(batch, self.encoder, self.texts, self.params.timestep_type, self.settings)
