"""Conversion between ComfyUI's IMAGE tensors and PIL images, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

SMALL = 512
"""Maximum side of the images in a preview, in pixels; a judgement."""


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Convert an IMAGE, [B, H, W, C] float32 in 0..1, to RGB images; alpha is dropped."""
    values = (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def to_images(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Convert images to an IMAGE, [B, H, W, 3] float32 in 0..1; smaller ones are padded to the largest sides."""
    width, height = max_sides(pictures)
    padded = [np.asarray(pad(picture, width, height), np.float32) for picture in pictures]
    return torch.from_numpy(np.stack(padded)) / 255


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Paste rows of images into one image, each padded to the largest sides."""
    width, height = max_sides([picture for row in rows for picture in row])
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(pad(picture, width, height), (x * width, y * height))
    return sheet


def small(picture: Image.Image) -> Image.Image:
    """Copy of an image, scaled down to at most SMALL pixels on a side."""
    copy = picture.copy()
    copy.thumbnail((SMALL, SMALL))
    return copy


def max_sides(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """Maximum width and maximum height."""
    return max(picture.width for picture in pictures), max(picture.height for picture in pictures)


def pad(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Center an image on a black one."""
    sheet = Image.new("RGB", (width, height))
    sheet.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return sheet
