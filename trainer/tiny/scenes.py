"""Pictures of one anti-aliased shape on a plain, pale background, 64 x 64 RGB."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64
"""Side of every picture in pixels."""


_OVERSAMPLE = 4


MARGIN = 4.0
"""Pixels between a shape and the edges."""


Color = tuple[int, int, int]


COLORS: dict[str, Color] = {
    "red": (220, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 205, 30),
    "green": (40, 165, 70),
    "cyan": (30, 185, 205),
    "blue": (40, 80, 220),
    "purple": (135, 50, 185),
    "pink": (240, 100, 180),
}


BACKGROUNDS: dict[str, Color] = {
    "white": (246, 246, 246),
    "gray": (176, 176, 180),
    "cream": (248, 238, 205),
    "mint": (196, 236, 208),
    "lavender": (214, 204, 242),
    "peach": (250, 212, 190),
}


SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "cross")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Description of an image; lengths in pixels."""

    shape: str
    color: Color
    background: Color
    radius: float
    x: float
    y: float


def draw(scene: Scene | None, background: Color | None = None) -> Image.Image:
    """Draw `scene` as a 64 x 64 RGB image, or a plain `background` without one."""
    side = SIZE * _OVERSAMPLE
    image = Image.new("RGB", (side, side), scene.background if scene else background)
    if scene:
        points = [(_OVERSAMPLE * px, _OVERSAMPLE * py) for px, py in _outline(scene)]
        ImageDraw.Draw(image).polygon(points, fill=scene.color)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _outline(scene: Scene) -> list[tuple[float, float]]:
    """Corner points of the scene's shape, in pixels."""
    cx, cy, r = scene.x, scene.y, scene.radius
    if scene.shape == "square":
        h = 0.85 * r
        return [(cx - h, cy - h), (cx + h, cy - h), (cx + h, cy + h), (cx - h, cy + h)]
    if scene.shape == "cross":
        a, b = r, r / 3
        turn = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
        return [(cx + dx, cy + dy) for dx, dy in turn]
    corners, inner = {"circle": (48, 1.0), "triangle": (3, 1.0), "diamond": (4, 1.0), "star": (10, 0.45)}[scene.shape]
    radii = [r * (inner if k % 2 else 1.0) for k in range(corners)]
    angles = [2 * math.pi * k / corners - math.pi / 2 for k in range(corners)]
    return [(cx + length * math.cos(a), cy + length * math.sin(a)) for length, a in zip(radii, angles, strict=True)]


def random_scene(rng: random.Random, *, smallest: float = 9.0, largest: float = 20.0, room: float = 1.0) -> Scene:
    """Draw a random scene whose shape, grown by the factor `room`, stays inside the image."""
    radius = rng.uniform(smallest, largest)
    reach = MARGIN + room * radius
    return Scene(
        shape=rng.choice(SHAPES),
        color=_near(rng, rng.choice(list(COLORS.values())), 12),
        background=_near(rng, rng.choice(list(BACKGROUNDS.values())), 8),
        radius=radius,
        x=rng.uniform(reach, SIZE - reach),
        y=rng.uniform(reach, SIZE - reach),
    )


def _near(rng: random.Random, color: Color, spread: int) -> Color:
    """`color`, each channel moved by at most `spread`."""
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in color)
    return red, green, blue
