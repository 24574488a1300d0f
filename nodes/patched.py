"""Names for the content of models that ComfyUI has loaded: the same after a restart, others for other weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SAMPLES = 8
"""Values of a tensor that stand for all of it."""


def fingerprint_patched(patcher: ModelPatcher, *extra: object) -> str:
    """A hexadecimal digest of a model's weights as they are without patches, of its patches, and of `extra`.

    Of every tensor its name, shape, dtype and a few evenly spaced values count.
    """
    model = patcher.model
    digest = hashlib.sha256(repr((type(model).__name__, extra)).encode())
    with torch.inference_mode():
        for name, tensor in sorted(chain(model.named_parameters(), model.named_buffers()), key=lambda item: item[0]):
            kept = patcher.backup.get(name)
            _update(digest, name, tensor if kept is None else kept.weight)
        for name in sorted(patcher.patches):
            for strength, patch, model_strength, *_ in patcher.patches[name]:
                for part in _parts(patch):
                    _update(digest, f"{name} {strength} {model_strength}", part)
    return digest.hexdigest()[:32]


def _parts(patch: Any) -> Iterator[Any]:
    """The tensors and numbers of a patch, which are nested in tuples and in adapter objects."""
    if isinstance(patch, list | tuple):
        for part in patch:
            yield from _parts(part)
    elif hasattr(patch, "weights"):
        yield type(patch).__name__
        yield from _parts(patch.weights)
    elif not callable(patch):
        yield patch


def _update(digest: hashlib._Hash, name: str, value: Any) -> None:
    digest.update(f"{name}\0".encode())
    if not isinstance(value, torch.Tensor):
        digest.update(repr(value).encode())
        return
    digest.update(f"{tuple(value.shape)} {value.dtype}\0".encode())
    # ComfyUI's quantized weights have their codes inside.
    stored = getattr(value, "_qdata", value).detach()
    if stored.numel():
        bits = stored.view(torch.uint8) if stored.element_size() == 1 else stored
        places = torch.linspace(0, bits.numel() - 1, SAMPLES).long().to(bits.device)
        values = bits[torch.unravel_index(places, bits.shape)] if bits.ndim else bits
        digest.update(repr(values.double().tolist()).encode())
