"""Encoding of rows into the cache: latents of every image, conditioning of every caption, each once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..data.images import EncodedImage
from ..data.resize import Size
from ..errors import BadImage, BadInput, RunFailed
from ..events import Progress, RunControl
from ..threads import prefetch_or_idle
from .cache import TensorCache, Tensors, cache_key
from .example import ControlImage, Example
from .latents import LATENTS, LatentEncoder, PendingImages, PreparedImage
from .masks import MaskStore

if TYPE_CHECKING:
    from PIL import Image

    from ..config.settings import RunSettings
    from ..data.dataset import EditDataset, EditRow
    from ..data.image_refs import ImageRef
    from ..memory.model_parts import ModelComponents


MAX_THREADS = 8
"""Threads that prepare images ahead; a judgement: enough for the latency of image servers."""

AHEAD_PIXELS = 16 * 2**20
"""Pixels of the images prepared ahead, 12 bytes each (3 float32 channels): 192 MiB, a judgement."""

MAX_ROWS_AHEAD = 16
"""Rows prepared ahead, twice the threads."""

LARGE_PIXELS = 2**24
"""Images with more pixels are decoded one at a time, to bound the memory of threads that decode at once; a judgement
(16 megapixels are 48 MiB as RGB)."""


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row whose images a thread has prepared."""

    row: int
    example: Example | None
    fault: tuple[str, str] | None
    """(column, reason) of a bad row."""
    images: list[PreparedImage]
    """Images that are not in the cache."""


class _Source(NamedTuple):
    """An image and what identifies it."""

    digest: str
    """sha256 of its bytes."""
    image: EncodedImage

    @classmethod
    def of(cls, data: bytes) -> _Source:
        return cls(hashlib.sha256(data).hexdigest(), EncodedImage(data))

    @classmethod
    def read(cls, dataset: EditDataset, reference: ImageRef) -> _Source:
        """Read an image of the dataset. Raises BadImage, and RunFailed when it is not the one that the run is for."""
        data = dataset.fetch(reference)
        digest = hashlib.sha256(data).hexdigest()
        dataset.check_unchanged(reference, digest)
        return cls(digest, EncodedImage(data))


class Encoder:
    """Encodes images and captions with the model's codec and text encoder, through the cache."""

    def __init__(self, components: ModelComponents, cache: TensorCache, settings: RunSettings) -> None:
        self.components = components
        self.family = components.model.family
        self.cache = cache
        self.masks = MaskStore(self.family, cache)
        self.settings = settings
        self.resolution = settings.resolution or self.family.variant.resolution
        self._vae, self._text = components.model.fingerprint("vae"), components.model.fingerprint("text")
        self._decoding = threading.Semaphore(os.cpu_count() or 1)
        self._decoding_large = threading.Lock()

    def examples(self, dataset: EditDataset, control: RunControl) -> Generator[Progress, None, list[Example]]:
        """Encode every image that is not in the cache; return the examples of all good rows.

        Threads fetch, decode and resize a bounded number of images ahead. Bad rows are left out or raise BadInput, as
        the dataset's `bad_rows` says.
        """
        examples: list[Example] = []
        bad: dict[int, tuple[str, str]] = {}
        pending = PendingImages(self.cache)
        ahead = self.rows_ahead(len(dataset.columns.controls))
        threads = _threads(dataset, ahead)
        reading = prefetch_or_idle(dataset, lambda row: self._read(dataset, row, pending), ahead, threads)
        done = 0
        with LatentEncoder(self.components, self.cache, pending.forget) as batches, closing(reading) as rows:
            for future in rows:
                if control.stopping:
                    break
                if future is not None:
                    done += 1
                    read = future.result()
                    for image in read.images:
                        batches.add(image)
                    if read.fault is not None:
                        bad[read.row] = read.fault
                    if read.example is not None:
                        examples.append(read.example)
                yield Progress(phase="caching", done=done, total=len(dataset), note="images")
            batches.finish(control)
        if bad:
            dataset.exclude(bad)
        return examples

    def rows_ahead(self, controls: int) -> int:
        """Number of rows, with that many control images each, that are prepared while another row is encoded."""
        control = self.resolution if self.settings.control_resolution == "target" else self.family.variant.resolution
        return max(2, min(MAX_ROWS_AHEAD, AHEAD_PIXELS // (self.resolution**2 + controls * control**2)))

    def _read(self, dataset: EditDataset, row: EditRow, pending: PendingImages) -> _ReadRow:
        images: list[PreparedImage] = []
        column = dataset.columns.image
        try:
            target = _Source.read(dataset, row.target)
            target_size = self.family.target_size(target.image.size, self.resolution)
            controls = []
            for name, reference in zip(row.control_columns, row.controls, strict=True):
                column = name
                source = _Source.read(dataset, reference)
                control = self._control(source, target_size)
                prepare = self.family.prepare_control
                images += self._prepared(pending, control.latents, source, prepare, control.size)
                controls.append(control)
            column = dataset.columns.image
            column = dataset.columns.mask or dataset.columns.image
            mask = self._mask(dataset, row, target, target_size)
            column = dataset.columns.image
            key = self._latents_key("target", target, target_size)
            images += self._prepared(pending, key, target, self.family.prepare_target, target_size)
        except BadInput as error:
            return _ReadRow(row.row, None, (column, error.reason), images)
        example = Example(row.row, row.caption, tuple(controls), key, target_size, mask)
        return _ReadRow(row.row, example, None, images)

    def _mask(self, dataset: EditDataset, row: EditRow, target: _Source, size: Size) -> str:
        """Cache a row's mask; returns its key, empty where all of the target counts. Raises BadImage, also for a mask
        of which nothing would be learned."""
        difference = self.settings.mask == "difference" and bool(row.controls)
        reference = row.controls[0] if difference else row.mask
        if reference is None:
            return ""
        source = _Source.read(dataset, reference)
        with self._decoding:
            if difference:
                # An EncodedImage is decoded once, for its latents.
                return self.masks.add_difference(
                    (target.digest, source.digest),
                    lambda: EncodedImage(dataset.fetch(row.target)).decode(),
                    source.image.decode,
                    size,
                )
            key = self.masks.add_picture(source.digest, source.image.decode_mask, size)
        if not self.settings.mask_min and not self.settings.mask_prior and self.masks.is_black(key):
            raise BadImage(
                "the mask is black everywhere, so that the row teaches nothing. Remove the row, or empty the mask's "
                "cell if all of the target counts"
            )
        return key

    def encode_again(self, dataset: EditDataset, example: Example) -> None:
        """Encode the images of an example that are missing in the cache. Raises RunFailed when they have changed."""
        read = self._read(dataset, dataset.read_row(example.row), PendingImages(self.cache))
        if read.example != example:
            place = dataset.report.place(dataset.file_row(example.row))
            raise RunFailed(f"The images of {place} were changed during the run. Start it again.")
        self._encode(read.images)

    def control_image(self, data: bytes, target_size: Size) -> tuple[ControlImage, torch.Tensor]:
        """Encode one control image, given as the content of its file, unless it is in the cache.

        Returns it with its normalized latents `[1, C, h, w]` in the compute dtype, on the CPU.

        Raises RunFailed when the cache does not keep them.
        """
        source = _Source.of(data)
        control = self._control(source, target_size)
        for _ in range(2):  # a damaged entry is dropped when it is read
            prepare = self.family.prepare_control
            self._encode(self._prepared(PendingImages(self.cache), control.latents, source, prepare, control.size))
            if (tensors := self.cache.get(control.latents, [LATENTS])) is not None:
                return control, tensors[LATENTS]
        raise self.cache.lost(control.latents)

    def _encode(self, images: Sequence[PreparedImage]) -> None:
        with LatentEncoder(self.components, self.cache) as batches:
            for image in images:
                batches.add(image)
            batches.finish()

    def _control(self, source: _Source, target_size: Size) -> ControlImage:
        size = self.family.control_size(source.image.size, target_size, self.settings.control_resolution)
        text_size = self.family.text_control_size(source.image.size, size)
        return ControlImage(source.digest, size, self._latents_key("control", source, size), text_size)

    def seen_by_text(self, data: bytes, control: ControlImage) -> torch.Tensor:
        """Prepare a control image, given as the content of its file, as the text encoder sees it: float32
        `[1, 3, H, W]` in 0..1."""
        return self.family.prepare_control(EncodedImage(data).decode(), control.text_size)

    def _latents_key(self, role: str, source: _Source, size: Size) -> str:
        return cache_key("latents", self._policy, role, source.digest, size, self._vae, self.components.dtype)

    def _prepared(
        self,
        pending: PendingImages,
        key: str,
        source: _Source,
        prepare: Callable[[Image.Image, Size], torch.Tensor],
        size: Size,
    ) -> list[PreparedImage]:
        """Return the image in a list, an empty list when its latents are cached or another thread prepares it."""

        def decode_and_resize() -> torch.Tensor:
            large = source.image.size.width * source.image.size.height > LARGE_PIXELS
            with self._decoding_large if large else nullcontext(), self._decoding:
                return prepare(source.image.decode(), size)

        image = pending.prepare(key, decode_and_resize)
        return [] if image is None else [image]

    @property
    def _policy(self) -> str:
        return f"{self.family.info.name}/{self.family.policy}"

    def latents(self, key: str) -> torch.Tensor:
        """Return normalized latents `[1, C, h, w]` from the cache, in the compute dtype on the CPU.

        Raises RunFailed when the entry is gone, DamagedEntry when it was damaged.
        """
        tensors = self.cache.get(key, [LATENTS])
        if tensors is None:
            raise self.cache.lost(key)
        return tensors[LATENTS]

    def text_key(self, caption: str, controls: Sequence[ControlImage]) -> str:
        """Return the cache key of the conditioning of a caption with its control images."""
        seen = [(control.digest, *control.sizes) for control in controls] if self.family.info.sees_control else []
        return cache_key("text", self._policy, caption, seen, self._text, self.components.dtype)

    def encode_text(self, caption: str, controls: Sequence[torch.Tensor]) -> Tensors:
        """Encode a caption; returns tensors `[1, ...]` in the encoder's dtype, on the CPU.

        `controls` are prepared control images, float32 `[1, 3, H, W]` in 0..1. Raises BadInput where the text encoder
        belongs to another transformer.
        """
        encoder = self.components.text_encoder()
        with torch.no_grad():
            conditioning = encoder.encode(caption, controls)
        self.components.check_text(conditioning)
        return {name: tensor.to("cpu") for name, tensor in conditioning.items()}


def _threads(dataset: EditDataset, ahead: int) -> int:
    """Return the number of threads: one a processor, more when they wait for image servers."""
    return min(MAX_THREADS, ahead, MAX_THREADS if _is_remote(dataset) else max(2, os.cpu_count() or 1))


def _is_remote(dataset: EditDataset) -> bool:
    """Tell whether the first row's images come from servers."""
    first = dataset[0]
    return any(reference.kind == "url" for reference in (*first.controls, first.target))
