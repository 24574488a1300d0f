"""From prepared pictures to cached latents: in batches of one size on an accelerator, side by side on the CPU."""

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


BATCH_PIXELS = 2**20
"""Of a batch on an accelerator: no more than one picture at the full models' resolution, which alone fills it."""


BATCH_IMAGES = 16


WAITING_PIXELS = 4 * BATCH_PIXELS
"""Of pictures that wait for others of their size; 12 bytes each."""


SIDE_BY_SIDE_PIXELS = 2 * 2**20
"""Of pictures that are encoded at the same time on the CPU; a full model's VAE holds several tensors of 128 float32
channels for each."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """A picture as the codec is to see it."""

    key: str
    """Cache key of its latents."""
    pixels: torch.Tensor
    """float32 [1, 3, H, W] in 0..1"""

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[-1], self.pixels.shape[-2])


class PendingImages:
    """Prepares pictures that are not in the cache, equal ones once. Thread-safe."""

    def __init__(self, cache: TensorCache) -> None:
        self.cache = cache
        self._begun: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def prepare(self, key: str, prepare: Callable[[], torch.Tensor]) -> PreparedImage | None:
        """The picture, or None when its latents are in the cache or whoever prepared it first sees to them. Raises what
        `prepare` raises, or raised there."""
        with self._lock:
            other = self._begun.get(key)
            if other is None:
                if key in self.cache:
                    return None
                mine: Future[None] = Future()
                self._begun[key] = mine
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
        """The picture's latents are in the cache."""
        with self._lock:
            del self._begun[key]


class _Encoded(NamedTuple):
    keys: list[str]
    latents: torch.Tensor


class LatentEncoder:
    """Encodes prepared pictures into the cache; to be used in a `with`, at whose end its threads are gone.

    On an accelerator pictures of one size go through the codec together. A codec's roundings depend on the shape of
    what it is given, so all batches of a size have the same: a picture's latents do not depend on which others share
    its batch, and an interrupted encoding gives what an uninterrupted one does.

    On the CPU every thread encodes a picture of its own, where the codec allows it. All threads on one picture would
    wait for each other at every layer, and for those that decode the next ones.
    """

    def __init__(
        self, components: ModelComponents, cache: TensorCache, written: Callable[[str], None] = lambda key: None
    ) -> None:
        """`written` is told the key of all that is in the cache, from another thread."""
        self.components = components
        self.cache = cache
        self._written = written
        self._waiting: dict[Size, list[PreparedImage]] = {}
        self._waiting_pixels = 0
        self._most: dict[Size, int] = {}
        """Pictures in a batch, where the device's memory did not hold more."""
        self._writing = BackgroundWork()
        self._side_by_side: BackgroundWork | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> LatentEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        self._writing.__exit__()
        if self._side_by_side:
            self._side_by_side.__exit__()
            # Torch hands the count that was set last, by whichever thread, to every thread that begins later.
            torch.set_num_threads(self._threads)

    def add(self, image: PreparedImage) -> None:
        """Encode the picture, or keep it until there are enough of its size. Raises RunFailed when the disk refuses."""
        if self._goes_side_by_side:
            self._side_by_side = self._side_by_side or self._encoding_threads(image.size)
            self._side_by_side.add(self._encode_alone, image)
            return
        self._waiting.setdefault(image.size, []).append(image)
        self._waiting_pixels += _area(image.size)
        if len(self._waiting[image.size]) >= self.batch_size(image.size):
            self._encode_waiting(image.size)
        elif self._waiting_pixels > WAITING_PIXELS:
            self._encode_waiting(max(self._waiting, key=lambda size: len(self._waiting[size]) * _area(size)))

    def finish(self, control: RunControl | None = None) -> None:
        """Encode all that waits and see it written, unless stopped on the way. Raises RunFailed."""
        while self._waiting and not (control and control.stopping):
            self._encode_waiting(next(iter(self._waiting)))
        self._writing.finish()
        if self._side_by_side:
            self._side_by_side.finish()

    @cached_property
    def _batch_codec(self) -> ImageCodec | None:
        return self.components.codec().for_batches()

    @property
    def _goes_side_by_side(self) -> bool:
        """Whether every picture is encoded by a thread of its own."""
        return self.components.device.type == "cpu" and self._batch_codec is not None

    def _encoding_threads(self, size: Size) -> BackgroundWork:
        count = max(1, min(self._threads, SIDE_BY_SIDE_PIXELS // _area(size)))
        return BackgroundWork(count, count, partial(torch.set_num_threads, self._threads // count))

    def _encode_alone(self, image: PreparedImage) -> None:
        self._write(self._encode([image], 1))

    def _encode_waiting(self, size: Size) -> None:
        images = self._waiting.pop(size)
        self._waiting_pixels -= len(images) * _area(size)
        while images:
            count = self.batch_size(size)
            encoded = self._encode(images[:count], count)
            if encoded is None:
                self._most[size] = count // 2
                continue
            self._writing.add(self._write, encoded)
            images = images[count:]

    def _encode(self, images: list[PreparedImage], count: int) -> _Encoded | None:
        """The latents of pictures of one size, made up to `count`; None when memory does not hold so many."""
        pixels = [image.pixels for image in images]
        batch = torch.cat(pixels + pixels[-1:] * (count - len(pixels))) if count > 1 else pixels[0]
        try:
            with torch.no_grad():
                latents = self.components.model.family.encode(self._batch_codec or self.components.codec(), batch)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            return None
        return _Encoded([image.key for image in images], latents)

    def _write(self, encoded: _Encoded) -> None:
        latents = encoded.latents.to("cpu")
        for key, own in zip(encoded.keys, latents.split(1), strict=False):
            self.cache.put(key, {"latents": own.clone() if len(latents) > 1 else own})
            self._written(key)

    def batch_size(self, size: Size) -> int:
        if self._batch_codec is None:
            return 1
        most = self._most.get(size, BATCH_IMAGES)
        return max(1, min(most, BATCH_PIXELS // _area(size)))


def _area(size: Size) -> int:
    return size.width * size.height
