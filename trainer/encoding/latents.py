"""Encoding of prepared images to cached latents: in batches on an accelerator, in parallel threads on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..data.resize import Size
from ..events import RunControl
from ..models.types import ImageCodec
from ..threads import BackgroundWork
from .cache import TensorCache

if TYPE_CHECKING:
    from ..memory.model_parts import ModelComponents


LATENTS = "latents"
"""Name of the tensor in a cache entry of an image."""

BATCH_PIXELS = 2**20
"""Pixels of a batch on an accelerator: one image at the full models' resolution, which is enough to keep it busy."""

MAX_BATCH_IMAGES = 16
"""Images in a batch on an accelerator; a judgement, reached only by images of up to 256 x 256 pixels."""

WAITING_PIXELS = 4 * BATCH_PIXELS
"""Pixels of images that wait for others of their size, 12 bytes each (3 float32 channels): 48 MiB, a judgement."""

PARALLEL_PIXELS = 2 * 2**20
"""Pixels of images that are encoded at the same time on the CPU; a judgement: a full model's VAE holds a few tensors of
128 float32 channels at full resolution, 1 GiB each."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """An image as the codec sees it."""

    key: str
    """Cache key of its latents."""
    pixels: torch.Tensor
    """float32 `[1, 3, H, W]` in 0..1"""

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.pixels.shape[-1], self.pixels.shape[-2])


class PendingImages:
    """Prepares images that are not in the cache, equal ones once. Thread-safe."""

    def __init__(self, cache: TensorCache) -> None:
        self.cache = cache
        self._started: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def prepare(self, key: str, prepare: Callable[[], torch.Tensor]) -> PreparedImage | None:
        """Return the image, or None when its latents are cached or another thread has prepared the same image.

        `prepare` returns float32 `[1, 3, H, W]` in 0..1. Raises its error, also one that it raised in another thread.
        """
        with self._lock:
            other = self._started.get(key)
            if other is None:
                if key in self.cache:
                    return None
                mine: Future[None] = Future()
                self._started[key] = mine
        if other is not None:
            return other.result()
        try:
            pixels = prepare()
        except BaseException as error:
            self.forget(key)
            mine.set_exception(error)
            raise
        mine.set_result(None)
        return PreparedImage(key, pixels)

    def forget(self, key: str) -> None:
        """Drop an image whose latents are in the cache."""
        with self._lock:
            del self._started[key]


class _Encoded(NamedTuple):
    keys: list[str]
    latents: torch.Tensor


class LatentEncoder:
    """Context manager that encodes prepared images into the cache; its threads end with the context.

    On an accelerator images of one size are encoded together. A codec's rounding depends on the shape of its input, so
    all batches of a size have one shape: an image's latents do not depend on the others in its batch, and an
    interrupted encoding gives the same as an uninterrupted one.

    On the CPU each thread encodes an image of its own, where the codec allows it: threads that share an image wait for
    each other at every layer, and for those that decode the next images.
    """

    def __init__(
        self, components: ModelComponents, cache: TensorCache, written: Callable[[str], None] = lambda key: None
    ) -> None:
        """`written` is called with the key of each cached image, from another thread."""
        self.components = components
        self.cache = cache
        self._written = written
        self._waiting: dict[Size, list[PreparedImage]] = {}
        self._waiting_pixels = 0
        self._max_images: dict[Size, int] = {}
        """Images in a batch of sizes of which the device's memory did not hold more."""
        self._writing = BackgroundWork()
        self._parallel: BackgroundWork | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> LatentEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        self._writing.__exit__()
        if self._parallel:
            self._parallel.__exit__()
            # torch gives new threads the count that was set last, by any thread.
            torch.set_num_threads(self._threads)

    def add(self, image: PreparedImage) -> None:
        """Encode the image, now or when there are enough of its size. Raises RunFailed when the disk refuses."""
        if self._is_parallel:
            self._parallel = self._parallel or self._encoding_threads(image.size)
            self._parallel.add(self._encode_alone, image)
            return
        self._waiting.setdefault(image.size, []).append(image)
        self._waiting_pixels += _area(image.size)
        if len(self._waiting[image.size]) >= self.batch_size(image.size):
            self._encode_waiting(image.size)
        elif self._waiting_pixels > WAITING_PIXELS:
            self._encode_waiting(max(self._waiting, key=lambda size: len(self._waiting[size]) * _area(size)))

    def finish(self, control: RunControl | None = None) -> None:
        """Encode and write all waiting images, unless stopped on the way. Raises RunFailed when the disk refuses."""
        while self._waiting and not (control and control.stopping):
            self._encode_waiting(next(iter(self._waiting)))
        self._writing.finish()
        if self._parallel:
            self._parallel.finish()

    @cached_property
    def _batch_codec(self) -> ImageCodec | None:
        return self.components.codec().for_batches()

    @property
    def _is_parallel(self) -> bool:
        """True where each thread encodes an image of its own."""
        return self.components.device.type == "cpu" and self._batch_codec is not None

    def _encoding_threads(self, size: Size) -> BackgroundWork:
        count = max(1, min(self._threads, PARALLEL_PIXELS // _area(size)))
        return BackgroundWork(count, count, partial(torch.set_num_threads, self._threads // count))

    def _encode_alone(self, image: PreparedImage) -> None:
        self._write(self._encode([image], 1))

    def _encode_waiting(self, size: Size) -> None:
        images = self._waiting.pop(size)
        self._waiting_pixels -= len(images) * _area(size)
        while images:
            count = self.batch_size(size)
            try:
                encoded = self._encode(images[:count], count)
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                self._max_images[size] = count // 2
                continue
            self._writing.add(self._write, encoded)
            images = images[count:]

    def _encode(self, images: list[PreparedImage], count: int) -> _Encoded:
        """Encode images of one size, padded to a batch of `count`."""
        pixels = [image.pixels for image in images]
        batch = torch.cat(pixels + pixels[-1:] * (count - len(pixels))) if count > 1 else pixels[0]
        with torch.no_grad():
            codec = self.components.codec(count * _area(images[0].size))
            latents = self.components.model.family.encode(self._batch_codec or codec, batch)
        return _Encoded([image.key for image in images], latents)

    def _write(self, encoded: _Encoded) -> None:
        latents = encoded.latents.to("cpu")
        for key, own in zip(encoded.keys, latents.split(1), strict=False):  # padding has no key
            self.cache.put(key, {LATENTS: own.clone() if len(latents) > 1 else own})
            self._written(key)

    def batch_size(self, size: Size) -> int:
        """Return the number of images of this size that are encoded together."""
        if self._batch_codec is None:
            return 1
        return max(1, min(self._max_images.get(size, MAX_BATCH_IMAGES), BATCH_PIXELS // _area(size)))


def _area(size: Size) -> int:
    return size.width * size.height
