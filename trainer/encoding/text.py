from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch

from ..data.images import decode_image
from ..errors import RunFailed
from ..events import Progress, RunControl
from ..threads import BackgroundWork, prefetch
from .cache import Tensors

if TYPE_CHECKING:
    from ..data.dataset import EditDataset
from .encoder import Encoder
from .example import ControlImage, Example

TEXT_THREADS = 2
"""That prepare the control images which the text encoder is to see."""


class TextEmbeddings:
    """Conditioning by key: from the disk cache, or encoded in blocks of upcoming examples and kept until used."""

    def __init__(self, encoder: Encoder, dataset: EditDataset, on_disk: bool) -> None:
        self.encoder = encoder
        self.dataset = dataset
        self.on_disk = on_disk
        self._block: dict[str, Tensors] = {}

    def get(self, key: str) -> Mapping[str, torch.Tensor]:
        """The conditioning that was encoded under `key`. Raises RunFailed when its cache entry is gone."""
        tensors = self.encoder.cache.get(key) if self.on_disk else self._block[key]
        if tensors is None:
            raise RunFailed(
                f"The cache {self.encoder.cache.folder} was changed while training: a text is gone. Start the run "
                "again; it goes on from its last checkpoint."
            )
        return tensors

    def encode(self, wanted: Iterable[tuple[Example, str]], control: RunControl) -> Generator[Progress, None, None]:
        """Encode the captions that are not there yet, each with its example's control images. In blocks: what the new
        block does not need is forgotten."""
        missing: dict[str, tuple[Example, str]] = {}
        needed: dict[str, Tensors] = {}
        for example, caption in wanted:
            key = self.encoder.text_key(caption, example.controls)
            if not self.on_disk and key in self._block:
                needed[key] = self._block[key]
            elif key not in missing and not (self.on_disk and key in self.encoder.cache):
                missing[key] = (example, caption)
        self._block = needed
        controls = prefetch((example for example, _ in missing.values()), self._controls, threads=TEXT_THREADS)
        with BackgroundWork() as writing, closing(controls) as seen:
            for done, (key, (_, caption)) in enumerate(missing.items(), 1):
                if control.stopping and self.on_disk:
                    return
                tensors = self.encoder.encode_text(caption, next(seen))
                if self.on_disk:
                    writing.add(self.encoder.cache.put, key, tensors)
                else:
                    self._block[key] = tensors
                yield Progress(phase="caching", done=done, total=len(missing), note="texts")
            writing.finish()

    def encode_one(
        self, caption: str, controls: Sequence[ControlImage], seen: Sequence[torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """The conditioning of one caption with its prepared control images, which the caller keeps."""
        key = self.encoder.text_key(caption, controls)
        tensors = self.encoder.cache.get(key) if self.on_disk else None
        if tensors is None:
            tensors = self.encoder.encode_text(caption, seen)
            if self.on_disk:
                self.encoder.cache.put(key, tensors)
        return tensors

    def _controls(self, example: Example) -> list[torch.Tensor]:
        family = self.encoder.family
        if not family.text_sees_control:
            return []
        references = self.dataset.row_numbered(example.row).controls
        return [
            family.prepare_control(decode_image(self.dataset.fetch(reference)), control.size)
            for reference, control in zip(references, example.controls, strict=True)
        ]
