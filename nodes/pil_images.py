"""Conversion between ComfyUI's IMAGE tensors and PIL images, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

SMALL = 512
"""Maximum side of the images in a preview, in pixels; a judgement."""


def to_pil(tensor: torch.Tensor) -> list[Image.Image]:
    """Convert an IMAGE, [B, H, W, C] float32 in 0..1, to RGB images; alpha is dropped."""
    values = (tensor[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Convert images to an IMAGE, [B, H, W, 3] float32 in 0..1; smaller ones are padded to the largest sides."""
    width, height = max_sides(images)
    padded = [np.asarray(pad(image, width, height), np.float32) for image in images]
    return torch.from_numpy(np.stack(padded)) / 255


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Paste rows of images into one image, each padded to the largest sides."""
    width, height = max_sides([image for row in rows for image in row])
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(pad(image, width, height), (x * width, y * height))
    return sheet


def shrink(image: Image.Image) -> Image.Image:
    """Copy of an image, scaled down to at most SMALL pixels on a side."""
    copy = image.copy()
    copy.thumbnail((SMALL, SMALL))
    return copy


def max_sides(images: Sequence[Image.Image]) -> tuple[int, int]:
    """Maximum width and maximum height."""
    return max(image.width for image in images), max(image.height for image in images)


def pad(image: Image.Image, width: int, height: int) -> Image.Image:
    """Center an image on a black one."""
    sheet = Image.new("RGB", (width, height))
    sheet.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return sheet
