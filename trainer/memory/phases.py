"""Memory of a run's phases besides its training steps: encoding, loading and sampling, on the device and the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from ..config.settings import caches_texts
from ..data.resize import Size
from ..paths import path_kind
from .activation_bytes import forward_bytes
from .codec_bytes import codec_bytes, codec_weights
from .encoder_bytes import EncoderBytes, encoder_bytes
from .estimate import MemoryEstimate, average_bytes
from .model_parts import TEXT_WORK_BYTES
from .plan import FROZEN, SLOTS, TRAINED, PhaseMemory, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from ..models.edit_model import EditModel
    from ..models.family import Family


TILE_PIXELS = 512 * 512
"""Pixels of the tiles in which the VAE works where whole images do not fit."""


LOADING_BYTES = 600_000_000
"""Bytes that loading takes besides the weights that stay: the largest weight as a file stores it, a fused projection of
Kontext's of 7 x 3072 x 3072 values in bf16, and its values in float32 while they are quantized. Rounded up."""


EXPORTED_LORA = 2
"""Bytes a weight of a LoRA's values as exported, which samples are drawn with. The second copy of a full fine-tune's
weights takes the place of its gradients, which are freed by then."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Memory of a request's phases, whatever its plan. Zero for parts that a host program loads and manages itself."""

    encoder: EncoderBytes
    codec: int
    """Bytes of the VAE's weights."""
    encode_work: int
    """Bytes that it encodes the largest image with; `_tiled`: in tiles."""
    encode_tiled: int
    decode_work: int
    """Bytes that it decodes a sample with; `_tiled`: in tiles."""
    decode_tiled: int
    sample_work: int
    """Bytes that the transformer draws a sample with."""


class Phases:
    """The phases of one request with the base in one precision, plan by plan."""

    def __init__(self, estimate: MemoryEstimate) -> None:
        self.estimate = estimate
        self.free = estimate.device_info.free
        self._caches_texts = caches_texts(estimate.params, estimate.settings)
        self._measured: _Parts | None = None

    def of(self, plan: Plan) -> tuple[PhaseMemory, ...]:
        """Count the phases of a plan in the order in which they begin."""
        if self._measured is None:
            self._measured = _parts(self.estimate)
        return tuple(self._all(plan, self._measured))

    def _all(self, plan: Plan, parts: _Parts) -> Iterator[PhaseMemory]:
        params, hosted = self.estimate.params, self.estimate.host_bytes(plan)
        waiting = 0 if self._caches_texts else parts.encoder.resident
        yield self._encoding_texts(parts.encoder, plan, hosted)
        whole = parts.codec + parts.encode_work
        device = whole if whole <= self.free else parts.codec + parts.encode_tiled
        yield PhaseMemory("encoding images", device, parts.codec + waiting)
        yield self._loading(plan, hosted + waiting)
        yield PhaseMemory("training", plan.bytes, hosted + waiting)
        if params.samples:
            yield self._sampling(plan, parts, hosted + waiting)

    def _encoding_texts(self, encoder: EncoderBytes, plan: Plan, hosted: int) -> PhaseMemory:
        """The encoder's layers are streamed where the device cannot hold them even alone, or the plan says so. While
        texts are not cached it comes back between steps: beside the transformer, or in its place."""
        if not encoder.resident:
            return PhaseMemory("encoding texts", 0, 0)
        alone = encoder.resident + TEXT_WORK_BYTES
        if plan.stream_text_encoder or alone > self.free:
            alone = encoder.streamed + TEXT_WORK_BYTES
        if self._caches_texts:
            return PhaseMemory("encoding texts", alone, encoder.resident)
        host, beside = encoder.resident + hosted, self._placed(plan) + alone
        if beside <= self.free:
            return PhaseMemory("encoding texts", beside, host)
        return PhaseMemory("encoding texts", alone, host + plan.expected.get(FROZEN, 0))

    def _loading(self, plan: Plan, hosted: int) -> PhaseMemory:
        blocks = self.estimate.weights.blocks
        packed = max((blocks[index] for index in plan.streamed), default=0)
        host = hosted - plan.inputs_host_bytes + packed + LOADING_BYTES
        return PhaseMemory("loading", self._placed(plan) + LOADING_BYTES, host)

    def _sampling(self, plan: Plan, parts: _Parts, hosted: int) -> PhaseMemory:
        """The transformer draws, then the VAE decodes: beside it, or in its place where both do not fit."""
        estimate = self.estimate
        exported = EXPORTED_LORA if estimate.params.use_lora else 0
        if estimate.settings.sample_ema:
            exported += average_bytes(estimate.settings)  # the trained values wait beside the averaged ones
        placed = self._placed(plan) + estimate.trainable * exported
        placed += _file_bytes(estimate.settings.sample_lora)
        drawing = placed + parts.sample_work + estimate.device_info.reserve(parts.sample_work)
        beside = placed + parts.codec + parts.decode_work
        if beside <= self.free:
            return PhaseMemory("sampling", max(drawing, beside), hosted)
        whole = parts.codec + parts.decode_work
        alone = whole if whole <= self.free else parts.codec + parts.decode_tiled
        return PhaseMemory("sampling", max(drawing, alone), hosted + plan.expected.get(FROZEN, 0))

    def _placed(self, plan: Plan) -> int:
        return sum(plan.expected.get(name, 0) for name in (FROZEN, SLOTS, TRAINED))


_PUBLISHED: dict[tuple[Path, torch.dtype], EncoderBytes | None] = {}
_GIVEN: WeakKeyDictionary[Family, dict[torch.dtype, EncoderBytes | None]] = WeakKeyDictionary()
"""Bytes of encoders in a folder or in files, which may be replaced while the program runs."""


def _encoder(model: EditModel, dtype: torch.dtype) -> EncoderBytes | None:
    """Return `encoder_bytes`, counted once for a model or for all that have the published encoders: building the
    encoders without storage takes seconds."""
    if model.ports is None and model.folder is None and not model.files.of("text"):
        key = model.family.configs, dtype
        if key not in _PUBLISHED:
            _PUBLISHED[key] = encoder_bytes(model, dtype)
        return _PUBLISHED[key]
    counted = _GIVEN.setdefault(model.family, {})
    if dtype not in counted:
        counted[dtype] = encoder_bytes(model, dtype)
    return counted[dtype]


def _file_bytes(file: str) -> int:
    """Return the size of a file, which is about what its weights take; 0 where there is none."""
    path = Path(file)
    return path.stat().st_size if path_kind(path) == "file" else 0


def _parts(estimate: MemoryEstimate) -> _Parts:
    model, params, dtype, shape = estimate.model, estimate.params, estimate.dtype, estimate.shape
    family = model.family
    size = family.sample_size(Size(params.sample_width, params.sample_height))
    control = family.control_size(size, size, "inference")
    seen = family.text_control_size(size, control)
    count = max([len(shape.controls), *(len(sample.control_urls) for sample in params.samples)])
    drawn = replace(shape, batch=1, target=size, controls=(control,) * count, text_controls=(seen,) * count)
    sample = forward_bytes(model, drawn, params, estimate.settings)
    encoder = _encoder(model, dtype)
    if model.ports is not None or encoder is None:
        return _Parts(EncoderBytes(0, ()), 0, 0, 0, 0, 0, sample)
    largest = max(image.width * image.height for image in (shape.target, *shape.controls))
    tiled = codec_bytes(family, dtype, TILE_PIXELS)
    return _Parts(
        encoder=encoder,
        codec=codec_weights(family, dtype),
        encode_work=codec_bytes(family, dtype, largest),
        encode_tiled=tiled,
        decode_work=codec_bytes(family, dtype, size.width * size.height),
        decode_tiled=tiled,
        sample_work=sample,
    )
