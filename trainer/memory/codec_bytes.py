"""Bytes that a VAE takes besides its weights to encode or decode an image, measured on tensors without storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import ModelMixin

from .live_bytes import LiveBytes

if TYPE_CHECKING:
    from ..models.family import Family


MEASURED_SIDE = 512
"""Pixels of the measured image's sides. Small, because attention without storage is measured with all its scores,
which no kernel of a GPU stores; the bytes of all else grow with the number of pixels."""


def codec_bytes_per_pixel(family: Family, dtype: torch.dtype, way: Literal["encode", "decode"]) -> float:
    """Peak bytes of encoding or decoding in `dtype` for each pixel of the image, without tiling. Measured once for each
    kind of VAE."""
    key = (*_kind(family), dtype, way)
    if key not in _MEASURED:
        _MEASURED[key] = _measured(family, dtype, way)
    return _MEASURED[key]


_MEASURED: dict[tuple[object, ...], float] = {}


def _kind(family: Family) -> tuple[object, ...]:
    """Key that VAEs of one kind share; every opened model has a family object of its own."""
    return type(family), json.dumps(dict(family.vae_config), sort_keys=True, default=str)


def _measured(family: Family, dtype: torch.dtype, way: Literal["encode", "decode"]) -> float:
    vae = _empty_vae(family)
    torch.nn.Module.to(vae, dtype)  # ModelMixin decorates `to`, which hides its types.
    with torch.device("meta"):
        codec = family.wrap_vae(vae, "meta", "")
        pixels = torch.empty(1, 3, MEASURED_SIDE, MEASURED_SIDE)
        latents = codec.encode(pixels)
    live = LiveBytes([*vae.parameters(), *vae.buffers()])
    with live:
        _ = codec.encode(pixels) if way == "encode" else codec.decode(latents)
    return live.peak / MEASURED_SIDE**2


def _empty_vae(family: Family) -> ModelMixin:
    with torch.device("meta"):
        vae: Any = family.vae_file.model.from_config(dict(family.vae_config))
    assert isinstance(vae, ModelMixin)
    return vae


def codec_bytes(family: Family, dtype: torch.dtype, pixels: int) -> int:
    """Peak bytes of encoding or decoding images of that many pixels in `dtype`, whichever takes more."""
    return int(pixels * max(codec_bytes_per_pixel(family, dtype, way) for way in ("encode", "decode")))


def codec_weights(family: Family, dtype: torch.dtype) -> int:
    """Bytes of the weights of the VAE in `dtype`. Counted once for each kind of VAE."""
    key = _kind(family)
    if key not in _PARAMETERS:
        _PARAMETERS[key] = sum(parameter.numel() for parameter in _empty_vae(family).parameters())
    return _PARAMETERS[key] * dtype.itemsize


_PARAMETERS: dict[tuple[object, ...], int] = {}
