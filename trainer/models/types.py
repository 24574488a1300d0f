from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


TextConditioning = Mapping[str, "torch.Tensor"]
"""What a text encoder makes of one caption: named tensors with a leading batch dimension, ready for safetensors."""


Part = Literal["transformer", "vae", "text"]
"""What of a base model is loaded, and let go, at a time."""


class Grid(NamedTuple):
    """Token rows and columns of packed latents."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class PackedLatents:
    """Normalized latents as the transformer sees them: 2 x 2 latent pixels to a token."""

    tokens: torch.Tensor
    """[batch, grid.height * grid.width, 4 * latent channels]"""
    grid: Grid


class TextEncoder(Protocol):
    """Port: captions and control images to conditioning."""

    fingerprint: str
    """Names the weights and the template; part of every cache key."""

    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption with its control images, each float32 [1, 3, H, W] in 0..1 as `Family.prepare_control`
        made them. Batch dimension 1 in every result."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        ...


class ImageCodec(Protocol):
    """Port: pixels to latents and back, not normalized."""

    fingerprint: str
    """Names the weights; part of every cache key."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in -1..1 to the distribution's mode [B, C, H/8, W/8]."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] to [B, 3, 8h, 8w] in -1..1."""
        ...

    def for_batches(self) -> ImageCodec | None:
        """What encodes many pictures: several in one tensor or, on the CPU, each in a thread of its own, until the
        weights are moved. None where pictures only go one by one."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Ports:
    """Text encoder and VAE that a host has loaded itself, to be used in the place of a family's own. The images that
    they are given are prepared under the policy `comfyui`."""

    text_encoder: TextEncoder
    codec: ImageCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What differs between a family's full-size model and its embedded tiny one."""

    resolution: int
    """Square root of the area, in pixels, that the model is made for: of targets, controls and samples."""
    max_sample_resolution: int
    """Square root of the largest sample area that the model can make."""
    text_length: int
    """Tokens that the text is padded to, where the family pads."""
    sample_steps: int
    sample_guidance: float
