"""ComfyUI's IMAGE tensors and PIL's pictures, one made into the other, and pictures put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

SMALL = 512
"""Pixels along a side of the pictures in an overview."""


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """RGB pictures of an IMAGE, float [B, H, W, C] in 0..1; an alpha channel is dropped."""
    values = (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def to_images(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """An IMAGE, float32 [B, H, W, 3] in 0..1, of pictures; smaller ones are padded to the largest sides."""
    width, height = largest(pictures)
    padded = [np.asarray(pad(picture, width, height), np.float32) for picture in pictures]
    return torch.from_numpy(np.stack(padded)) / 255


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures, every cell padded to the largest sides."""
    width, height = largest([picture for row in rows for picture in row])
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(pad(picture, width, height), (x * width, y * height))
    return sheet


def small(picture: Image.Image) -> Image.Image:
    """The picture, made smaller where it is more than SMALL pixels wide or high."""
    copy = picture.copy()
    copy.thumbnail((SMALL, SMALL))
    return copy


def largest(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """The greatest width and the greatest height."""
    return max(picture.width for picture in pictures), max(picture.height for picture in pictures)


def pad(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in the middle of a black one."""
    sheet = Image.new("RGB", (width, height))
    sheet.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return sheet
