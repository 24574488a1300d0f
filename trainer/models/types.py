"""Protocols of text encoder and image codec, and packed latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


TextConditioning = Mapping[str, "torch.Tensor"]
"""A text encoder's output for one caption: named tensors with a leading batch dimension, ready for safetensors."""


def has_mask(text: TextConditioning) -> bool:
    """Tell whether padding of conditioning `[B, ...]` is masked: the mask alone is not of a float dtype."""
    return any(not tensor.is_floating_point() for tensor in text.values())


class Grid(NamedTuple):
    """Token rows and columns of packed latents."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class PackedLatents:
    """Normalized latents as the transformer's tokens, each a square of `Family.patch` pixels of the image."""

    tokens: torch.Tensor
    """[B, grid.height * grid.width, channels] in the latents' dtype."""
    grid: Grid


class TextEncoder(Protocol):
    """Encodes captions, with control images where the family's text encoder sees them."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and the prompt template; part of every cache key."""
        ...

    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption with its control images, each [1, 3, H, W] float32 in 0..1 from `Family.prepare_control`,
        to tensors of batch size 1 in the encoder's dtype."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        ...


class PortedTextEncoder(TextEncoder, Protocol):
    """Text encoder of a host program."""

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """The tokenizers that it reads captions with, by any name."""
        ...


class ImageCodec(Protocol):
    """Encodes images to latents and decodes them; `Family.normalize` has the rest of the normalization, if any."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights; part of every cache key."""
        ...

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, H, W] float32 in -1..1 to the mode of the latent distribution, [B, C, h, w] in the codec's
        dtype."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [B, C, h, w] of any float dtype to [B, 3, H, W] in -1..1 in the codec's dtype."""
        ...

    def for_batches(self) -> ImageCodec | None:
        """The codec to encode many images with: several in one tensor or, on the CPU, one per thread, until the weights
        are moved. None if images must be encoded one at a time."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Ports:
    """Text encoder and VAE that a host program has loaded, used in place of a base model's own. Their images are
    prepared under the policy `comfyui`."""

    text_encoder: PortedTextEncoder
    codec: ImageCodec
