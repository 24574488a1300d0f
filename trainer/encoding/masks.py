"""Masks of the loss: where in the target it counts, for each token of the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..data.resize import Size
from .cache import TensorCache, cache_key

if TYPE_CHECKING:
    from PIL import Image

    from ..models.family import Family


Decoding = Callable[[], "Image.Image"]
"""Decodes a picture to RGB. Raises BadImage."""

MASK = "mask"
"""Name of the tensor in a cache entry of a mask."""

UNCHANGED, CHANGED = 0.02, 0.1
"""Mean differences of a token's pixels, of values in 0..1, up to which it counts as unchanged and from which on as
changed; linear in between. A judgement: JPEG at quality 75 moves most tokens by less than the first."""


class MaskStore:
    """Makes masks and keeps them in the cache: float32 `[1, tokens]` in 0..1, 1 where the loss counts in full."""

    def __init__(self, family: Family, cache: TensorCache) -> None:
        self.family, self.cache = family, cache
        self._policy = f"{family.info.name}/{family.policy}"

    def add_picture(self, digest: str, decode: Decoding, size: Size) -> str:
        """Cache the mask of a grey picture, in which white counts, resized as a target of this size; returns its key.

        `digest` is that of the picture's bytes, which `decode` reads with black where it is transparent. Raises
        BadImage.
        """
        key = cache_key(MASK, self._policy, "picture on black", digest, size)
        if key not in self.cache:
            pixels = self.family.prepare_target(decode(), size)
            self.cache.put(key, {MASK: self._token_means(pixels).clamp(0, 1)})
        return key

    def add_difference(self, digests: tuple[str, str], target: Decoding, control: Decoding, size: Size) -> str:
        """Cache the mask of where a target of this size differs from its control image; returns its key.

        `digests` are those of both. An edit that changes nothing counts everywhere. Raises BadImage.
        """
        key = cache_key(MASK, self._policy, "difference", *digests, size)
        if key not in self.cache:
            pixels = [self.family.prepare_target(decode(), size) for decode in (target, control)]
            change = self._token_means((pixels[0] - pixels[1]).abs())
            mask = ((change - UNCHANGED) / (CHANGED - UNCHANGED)).clamp(0, 1)
            self.cache.put(key, {MASK: mask if mask.any() else torch.ones_like(mask)})
        return key

    def is_black(self, key: str) -> bool:
        """Tell whether a mask counts nowhere."""
        tensors = self.cache.get(key, [MASK])
        return tensors is not None and not tensors[MASK].any()

    def get(self, key: str) -> torch.Tensor:
        """Return a mask, float32 `[1, tokens]` in 0..1. Raises RunFailed when it is gone, DamagedEntry when it was
        damaged."""
        tensors = self.cache.get(key, [MASK])
        if tensors is None:
            raise self.cache.lost(key)
        return tensors[MASK]

    def _token_means(self, pixels: torch.Tensor) -> torch.Tensor:
        """Average pixels `[1, 3, H, W]` float32 over channels and over each token: `[1, tokens]`."""
        grid = pixels.shape[-2] // self.family.patch, pixels.shape[-1] // self.family.patch
        return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), grid).flatten(1)
