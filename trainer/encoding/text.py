"""Captions to text conditioning, cached on disk or encoded in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch

from ..data.image_refs import ImageRef
from ..errors import RunFailed, shorten
from ..events import Progress, RunControl
from ..threads import BackgroundWork, prefetch_or_idle
from .cache import Tensors
from .encoder import Encoder
from .example import ControlImage, Example

if TYPE_CHECKING:
    from ..data.dataset import EditDataset


TEXT_THREADS = 2
"""Threads that prepare control images for the text encoder; a judgement: it is slower than two of them."""


class TextEmbeddings:
    """Text conditioning by key, from the disk cache or from the block of upcoming examples in memory."""

    def __init__(self, encoder: Encoder, dataset: EditDataset, on_disk: bool) -> None:
        self.encoder = encoder
        self.dataset = dataset
        self.on_disk = on_disk
        self._names = tuple(encoder.family.text_shapes(encoder.components.model.transformer_config(), ()))
        self._block: dict[str, Tensors] = {}

    def get(self, key: str) -> Mapping[str, torch.Tensor]:
        """Return the conditioning of a key: tensors `[1, ...]` in the encoder's dtype, on the CPU.

        Raises RunFailed when its cache entry is gone, DamagedEntry when it was damaged.
        """
        tensors = self._cached(key) if self.on_disk else self._block[key]
        if tensors is None:
            raise self.encoder.cache.lost(key)
        return tensors

    def encode(self, captions: Iterable[tuple[Example, str]], control: RunControl) -> Generator[Progress, None, None]:
        """Encode the captions that are missing, each with its example's control images.

        Without the disk cache these captions become the block in memory, and all others are dropped.
        """
        missing: dict[str, tuple[Example, str]] = {}
        needed: dict[str, Tensors] = {}
        for example, caption in captions:
            key = self.encoder.text_key(caption, example.controls)
            if not self.on_disk and key in self._block:
                needed[key] = self._block[key]
            elif key not in missing and not (self.on_disk and key in self.encoder.cache):
                missing[key] = (example, caption)
        self._block = needed
        ordered = iter(missing.items())
        controls = prefetch_or_idle([example for example, _ in missing.values()], self._controls, 2, TEXT_THREADS)
        done = 0
        with BackgroundWork() as writing, closing(controls) as prepared:
            for future in prepared:
                if control.stopping and self.on_disk:
                    return
                if future is not None:
                    key, (_, caption) = next(ordered)
                    tensors = self.encoder.encode_text(caption, future.result())
                    done += 1
                    if self.on_disk:
                        writing.add(self.encoder.cache.put, key, tensors)
                    else:
                        self._block[key] = tensors
                yield Progress(phase="caching", done=done, total=len(missing), note="texts")
            writing.finish()

    def encode_one(
        self, caption: str, controls: Sequence[ControlImage], pixels: Sequence[torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Return the conditioning of one caption, `[1, ...]` in the encoder's dtype; not kept in the block.

        `pixels` are the prepared control images, float32 `[1, 3, H, W]` in 0..1.
        """
        key = self.encoder.text_key(caption, controls)
        tensors = self._cached(key) if self.on_disk else None
        if tensors is None:
            tensors = self.encoder.encode_text(caption, pixels)
            if self.on_disk:
                self.encoder.cache.put(key, tensors)
        return tensors

    def _cached(self, key: str) -> Tensors | None:
        return self.encoder.cache.get(key, self._names)

    def _controls(self, example: Example) -> list[torch.Tensor]:
        if not self.encoder.family.info.sees_control:
            return []
        references = self.dataset.read_row(example.row).controls
        return [
            self.encoder.seen_by_text(self._fetch_again(reference, control), control)
            for reference, control in zip(references, example.controls, strict=True)
        ]

    def _fetch_again(self, reference: ImageRef, control: ControlImage) -> bytes:
        """Read a control image whose latents are cached. Raises RunFailed when it is another one by now."""
        data = self.dataset.fetch(reference)
        if hashlib.sha256(data).hexdigest() != control.digest:
            raise RunFailed(
                f"{shorten(str(reference))} was replaced during the run, after its latents were encoded. Start the run "
                "again; it takes the new picture."
            )
        return data
