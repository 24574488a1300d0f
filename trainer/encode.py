"""From rows to cached tensors: latents of every image, conditioning of every caption, each encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .cache import TensorCache, Tensors, cache_key
from .errors import BadInput, RunFailed
from .events import Progress, RunControl
from .images import decode_image, image_size
from .models.family import Size

if TYPE_CHECKING:
    from .dataset import EditDataset
    from .memory import Parts
    from .settings import RunSettings


@dataclass(frozen=True, slots=True)
class ControlImage:
    """A control image as the transformer and the text encoder will see it."""

    digest: str
    """sha256 of the image file's bytes."""
    size: Size
    latents: str
    """Cache key."""


@dataclass(frozen=True, slots=True)
class Example:
    """What the training loop needs to know of one row."""

    row: int
    """Row of the parquet, from 0; addresses the example's noise."""
    caption: str
    controls: tuple[ControlImage, ...]
    target: str
    """Cache key of the target's latents."""
    target_size: Size

    @property
    def shape(self) -> tuple[Size, ...]:
        """Examples of equal shape can share a batch."""
        return (self.target_size, *(control.size for control in self.controls))


class Encoder:
    """Encodes through the model's ports, into the cache."""

    def __init__(self, parts: Parts, cache: TensorCache, settings: RunSettings) -> None:
        self.parts = parts
        self.family = parts.model.family
        self.cache = cache
        self.settings = settings
        self.resolution = settings.resolution or self.family.scale.resolution
        self._vae, self._text = parts.model.fingerprint("vae"), parts.model.fingerprint("text")

    def examples(self, dataset: EditDataset, control: RunControl) -> Generator[Progress, None, list[Example]]:
        """Encode every image that is not in the cache yet; every row is checked on the way.

        Rows that turn out bad stop the run or are left out, as the dataset was told. Raises BadInput.
        """
        examples: list[Example] = []
        bad: dict[int, tuple[str, str]] = {}
        for done, row in enumerate(dataset, 1):
            if control.stopping:
                break
            column = dataset.image_column
            try:
                target_data = dataset.fetch(row.target)
                target_size = self.family.target_size(image_size(target_data), self.resolution)
                column = dataset.control_image_column
                controls = []
                for reference in row.controls:
                    data = dataset.fetch(reference)
                    controls.append(self.control_image(data, target_size))
                column = dataset.image_column
                target = self._target(target_data, target_size)
            except BadInput as error:
                bad[row.row] = (column, str(error))
            else:
                examples.append(Example(row.row, row.caption, tuple(controls), target, target_size))
            yield Progress(phase="caching", done=done, total=len(dataset), note="images")
        if bad:
            dataset.exclude(bad)
        return examples

    def control_image(self, data: bytes, target_size: Size) -> ControlImage:
        """Encode one control image, given as the bytes of its file, unless the cache has it."""
        size = self.family.control_size(image_size(data), target_size, self.settings.control_resolution)
        digest = hashlib.sha256(data).hexdigest()
        key = self._latents("control", digest, size, lambda: self.family.prepare_control(decode_image(data), size))
        return ControlImage(digest, size, key)

    def _target(self, data: bytes, size: Size) -> str:
        digest = hashlib.sha256(data).hexdigest()
        return self._latents("target", digest, size, lambda: self.family.prepare_target(decode_image(data), size))

    def _latents(self, role: str, digest: str, size: Size, prepare: Callable[[], torch.Tensor]) -> str:
        key = cache_key("latents", self._policy, role, digest, size, self._vae, self.parts.dtype)
        if key not in self.cache:
            image = prepare()
            with torch.no_grad():
                self.cache.put(key, {"latents": self.family.encode(self.parts.codec(), image)})
        return key

    @property
    def _policy(self) -> str:
        return f"{self.family.name}/{self.family.policy}"

    def latents(self, key: str) -> torch.Tensor:
        """Normalized latents [1, C, h, w] from the cache. Raises RunFailed when the entry is gone."""
        tensors = self.cache.get(key)
        if tensors is None:
            raise RunFailed(
                f"The cache {self.cache.folder} was changed while training: an entry is gone. Start the run again; it "
                "goes on from its last checkpoint and encodes what is missing."
            )
        return tensors["latents"]

    def text_key(self, caption: str, controls: Sequence[ControlImage]) -> str:
        """Names the conditioning of a caption with its control images."""
        seen = [(control.digest, *control.size) for control in controls] if self.family.text_sees_control else []
        return cache_key("text", self._policy, caption, seen, self._text, self.parts.dtype)

    def encode_text(self, caption: str, controls: Sequence[torch.Tensor]) -> Tensors:
        """Conditioning of a caption with prepared control images, on the CPU."""
        encoder = self.parts.text_encoder()
        with torch.no_grad():
            conditioning = encoder.encode(caption, controls)
        return {name: tensor.to("cpu") for name, tensor in conditioning.items()}


class Texts:
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
        for done, (key, (example, caption)) in enumerate(missing.items(), 1):
            if control.stopping and self.on_disk:
                return
            tensors = self.encoder.encode_text(caption, self._controls(example))
            if self.on_disk:
                self.encoder.cache.put(key, tensors)
            else:
                self._block[key] = tensors
            yield Progress(phase="caching", done=done, total=len(missing), note="texts")

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
        references = self.dataset.at_row(example.row).controls
        return [
            family.prepare_control(decode_image(self.dataset.fetch(reference)), control.size)
            for reference, control in zip(references, example.controls, strict=True)
        ]
