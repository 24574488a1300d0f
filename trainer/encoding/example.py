from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.resize import Size

if TYPE_CHECKING:
    pass


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
