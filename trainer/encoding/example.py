"""Encoded rows of a dataset, as cache keys."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.resize import Size


@dataclass(frozen=True, slots=True)
class ControlImage:
    """A control image as the transformer and the text encoder see it."""

    digest: str
    """sha256 of the image file's bytes."""
    size: Size
    """Size at which its latents are made."""
    latents: str
    """Cache key of its latents."""
    text_size: Size
    """Size at which the text encoder sees it."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width and height of its latents, followed by those that the text encoder sees where they differ."""
        return self.size if self.text_size == self.size else (*self.size, *self.text_size)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the dataset, encoded."""

    row: int
    """Row number in the parquet file, from 0; part of the address of the example's noise."""
    caption: str
    controls: tuple[ControlImage, ...]
    target: str
    """Cache key of the target's latents."""
    target_size: Size
    mask: str = ""
    """Cache key of the mask of its loss; empty where all of the target counts."""

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes of all images; examples of equal shape can share a batch."""
        return (self.target_size, *(control.size for control in self.controls))
