"""Which size a picture gets. Pure functions of sizes, width always first; no image is touched here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


class Box(NamedTuple):
    """A part of an image in pixels, as PIL's `crop` takes it; right and bottom are not inside."""

    left: int
    top: int
    right: int
    bottom: int


def nearest_multiple(length: float, step: int) -> int:
    """The multiple of `step` nearest to `length` pixels, at least one step."""
    return max(step, round(length / step) * step)


def scaled(size: Size, factor: float, step: int) -> Size:
    """Both sides times `factor`, rounded to multiples of `step`."""
    return Size(nearest_multiple(size.width * factor, step), nearest_multiple(size.height * factor, step))


def at_area_of(size: Size, other: Size, step: int) -> Size:
    """`size` brought to the area of `other`, its aspect kept as far as multiples of `step` allow."""
    return scaled(size, math.sqrt(other.width * other.height / (size.width * size.height)), step)


def nearest_aspect(image: Size, sizes: Iterable[Size], step: int) -> Size:
    """The size whose width / height is nearest to the image's: FluxKontextPipeline's choice of a preferred size.

    The pipeline first cuts the image's sides down to multiples of `step`; so does this. On a tie the narrower wins.
    """
    aspect = max(step, image.width // step * step) / max(step, image.height // step * step)
    return min(sizes, key=lambda size: (abs(aspect - size.width / size.height), size))


def centre_crop(image: Size, size: Size) -> Box:
    """The part of an image that has the aspect of `size`, cut from its middle as ComfyUI cuts it."""
    aspect, wanted = image.width / image.height, size.width / size.height
    left = top = 0
    if aspect > wanted:
        left = round((image.width - image.width * (wanted / aspect)) / 2)
    elif aspect < wanted:
        top = round((image.height - image.height * (aspect / wanted)) / 2)
    return Box(left, top, image.width - left, image.height - top)


def cut_to_multiples(image: Size, step: int) -> Box:
    """The middle of an image whose sides are multiples of `step`, as ComfyUI's VAE cuts it."""
    left, top = image.width % step // 2, image.height % step // 2
    return Box(left, top, left + image.width // step * step, top + image.height // step * step)


def nearest_possible(wanted: Size, max_resolution: int, step: int) -> Size:
    """The size nearest to `wanted`, by the relative change of both sides, among those that can be made.

    Those have sides that are multiples of `step` up to twice `max_resolution`, and an area of at most
    max_resolution x max_resolution; a size that is larger is first brought down to that area with its aspect kept.
    """
    area, longest = max_resolution**2, 2 * max_resolution
    factor = min(1.0, math.sqrt(area / (wanted.width * wanted.height)))
    width, height = wanted.width * factor, wanted.height * factor

    def change(size: Size) -> float:
        return math.log(size.width / width) ** 2 + math.log(size.height / height) ** 2

    possible = []
    for multiple in range(step, longest + 1, step):
        highest = min(longest, area // multiple) // step * step
        below = min(max(int(height) // step * step, step), highest)
        possible += [Size(multiple, side) for side in (below, below + step) if 0 < side <= highest]
    return min(possible, key=change)


class Size(NamedTuple):
    """Pixels, width first as in PIL."""

    width: int
    height: int
