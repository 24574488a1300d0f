"""Arithmetic of image sizes, width first, in pixels. No image is touched here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Box(NamedTuple):
    """Part of an image in pixels, as for PIL's `crop`: right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def nearest_multiple(length: float, step: int) -> int:
    """Round a length to the nearest multiple of `step`, at least one."""
    return max(step, round(length / step) * step)


def scaled(size: Size, factor: float, step: int) -> Size:
    """Scale both sides by `factor` and round them to multiples of `step`."""
    return Size(nearest_multiple(size.width * factor, step), nearest_multiple(size.height * factor, step))


def at_area_of(size: Size, other: Size, step: int) -> Size:
    """Scale `size` to the area of `other`, keeping its aspect as far as multiples of `step` allow."""
    return scaled(size, math.sqrt(other.width * other.height / (size.width * size.height)), step)


def nearest_aspect(image: Size, sizes: Iterable[Size], step: int) -> Size:
    """The size whose width / height is nearest to the image's; on a tie the narrower one.

    Source: diffusers' FluxKontextPipeline and its preferred resolutions. As there, the image's sides are first rounded
    down to multiples of `step`.
    """
    aspect = max(step, image.width // step * step) / max(step, image.height // step * step)
    return min(sizes, key=lambda size: (abs(aspect - size.width / size.height), size))


def centre_crop(image: Size, size: Size) -> Box:
    """Central part of an image with the aspect of `size`, as in ComfyUI's `common_upscale` with crop "center"."""
    aspect, wanted = image.width / image.height, size.width / size.height
    left = top = 0
    if aspect > wanted:
        left = round((image.width - image.width * (wanted / aspect)) / 2)
    elif aspect < wanted:
        top = round((image.height - image.height * (aspect / wanted)) / 2)
    return Box(left, top, image.width - left, image.height - top)


def cut_to_multiples(image: Size, step: int) -> Box:
    """Central part of an image with sides that are multiples of `step`, as in ComfyUI's `vae_encode_crop_pixels`."""
    left, top = image.width % step // 2, image.height % step // 2
    return Box(left, top, left + image.width // step * step, top + image.height // step * step)


def nearest_possible(wanted: Size, max_resolution: int, step: int) -> Size:
    """The possible size nearest to `wanted`, by the relative change of both sides.

    Possible are sides that are multiples of `step`, at most 2 * max_resolution, and areas of at most
    max_resolution**2. A larger `wanted` is first scaled down to that area.
    """
    area, max_side = max_resolution**2, 2 * max_resolution
    factor = min(1.0, math.sqrt(area / (wanted.width * wanted.height)))
    width, height = wanted.width * factor, wanted.height * factor

    def change(size: Size) -> float:
        return math.log(size.width / width) ** 2 + math.log(size.height / height) ** 2

    possible = []
    for multiple in range(step, max_side + 1, step):
        max_height = min(max_side, area // multiple) // step * step
        below = min(max(int(height) // step * step, step), max_height)
        possible += [Size(multiple, side) for side in (below, below + step) if 0 < side <= max_height]
    return min(possible, key=change)


class Size(NamedTuple):
    """Width and height in pixels, in the order of PIL."""

    width: int
    height: int
