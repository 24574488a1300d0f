"""Synthetic edits of simple shapes, for training and testing the embedded models.

An image shows one anti-aliased shape on a plain, pale background, 64 x 64 RGB. An edit is a caption and a rule that
turns one such image into another. The embedded base models are trained on `BASE_EDITS`; `TAUGHT_EDITS` are kept from
them, so that a LoRA that does one of those has learned it. Edit, seed and index determine a pair.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

SIZE = 64
"""Side of every picture in pixels."""


FRAME_WIDTH = 6
"""Width of the taught frame in pixels."""


_OVERSAMPLE = 4


_MARGIN = 4.0


_RESIZE_FACTOR = 1.5


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


SIDES: tuple[str, ...] = ("left", "right", "top", "bottom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Description of an image; lengths in pixels."""

    shape: str
    color: Color
    background: Color
    radius: float
    x: float
    y: float


class EditPair(NamedTuple):
    """Training example: the image before, the instruction, the image after."""

    control: Image.Image
    caption: str
    target: Image.Image


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
    reach = _MARGIN + room * radius
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


def _other(rng: random.Random, names: Iterable[str], current: object, value: Callable[[str], object]) -> str:
    """A name from `names` whose value is not the `current` one."""
    return rng.choice([name for name in names if value(name) != current])


def _recolor(rng: random.Random) -> EditPair:
    scene = random_scene(rng)
    name = rng.choice(list(COLORS))
    return EditPair(draw(scene), f"make it {name}", draw(replace(scene, color=COLORS[name])))


def _reshape(rng: random.Random) -> EditPair:
    scene = random_scene(rng)
    name = _other(rng, SHAPES, scene.shape, str)
    return EditPair(draw(scene), f"turn it into a {name}", draw(replace(scene, shape=name)))


def _background(rng: random.Random) -> EditPair:
    scene = random_scene(rng)
    name = rng.choice(list(BACKGROUNDS))
    return EditPair(draw(scene), f"make the background {name}", draw(replace(scene, background=BACKGROUNDS[name])))


def _grow(rng: random.Random) -> EditPair:
    scene = random_scene(rng, largest=14.0, room=_RESIZE_FACTOR)
    return EditPair(draw(scene), "make it bigger", draw(replace(scene, radius=scene.radius * _RESIZE_FACTOR)))


def _shrink(rng: random.Random) -> EditPair:
    scene = random_scene(rng, smallest=13.0)
    return EditPair(draw(scene), "make it smaller", draw(replace(scene, radius=scene.radius / _RESIZE_FACTOR)))


def _move(rng: random.Random) -> EditPair:
    scene = random_scene(rng, largest=16.0)
    side = rng.choice(SIDES)
    near, far = _MARGIN + scene.radius, SIZE - _MARGIN - scene.radius
    place = {"left": {"x": near}, "right": {"x": far}, "top": {"y": near}, "bottom": {"y": far}}[side]
    return EditPair(draw(scene), f"move it to the {side}", draw(replace(scene, **place)))


def _remove(rng: random.Random) -> EditPair:
    scene = random_scene(rng)
    return EditPair(draw(scene), "remove it", draw(None, scene.background))


def _frame(rng: random.Random) -> EditPair:
    control = draw(random_scene(rng))
    return EditPair(control, "add a red frame", framed(control, COLORS["red"], FRAME_WIDTH))


def _invert(rng: random.Random) -> EditPair:
    control = draw(random_scene(rng))
    return EditPair(control, "invert the colors", ImageOps.invert(control))


def _mirror(rng: random.Random) -> EditPair:
    control = draw(random_scene(rng, largest=14.0))
    return EditPair(control, "mirror the picture", ImageOps.mirror(control))


def _swap(rng: random.Random) -> EditPair:
    scene = random_scene(rng)
    return EditPair(
        draw(scene), "swap the colors", draw(replace(scene, color=scene.background, background=scene.color))
    )


def framed(image: Image.Image, color: Color, width: int) -> Image.Image:
    """Draw a border of `width` pixels over the edges of `image`."""
    return ImageOps.expand(ImageOps.crop(image, width), width, color)


_EDITS: dict[str, Callable[[random.Random], EditPair]] = {
    "recolor": _recolor,
    "reshape": _reshape,
    "background": _background,
    "grow": _grow,
    "shrink": _shrink,
    "move": _move,
    "remove": _remove,
    "frame": _frame,
    "invert": _invert,
    "mirror": _mirror,
    "swap": _swap,
}


BASE_EDITS: tuple[str, ...] = ("recolor", "reshape", "background", "grow", "shrink", "move", "remove")


TAUGHT_EDITS: tuple[str, ...] = ("frame", "invert", "mirror", "swap")


def make_pair(edit: str, seed: int, index: int) -> EditPair:
    """Make pair number `index` of the named edit; equal arguments give equal pixels."""
    return _EDITS[edit](random.Random(f"{edit}/{seed}/{index}"))


def make_pairs(edits: Sequence[str], seed: int, count: int, start: int = 0) -> Iterable[EditPair]:
    """Yield `count` pairs from index `start` on, taking the named edits in turn."""
    for index in range(start, start + count):
        yield make_pair(edits[index % len(edits)], seed, index)


def png_bytes(image: Image.Image) -> bytes:
    """Encode `image` as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_parquet(path: str | Path, edits: Sequence[str], seed: int, count: int, start: int = 0) -> Path:
    """Write `count` pairs as a parquet with the columns control, caption, target.

    The images are Hugging Face `datasets` structs {bytes, path} that hold PNG bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("control", image_type), ("caption", pa.string()), ("target", image_type)])
    rows = [
        {
            "control": {"bytes": png_bytes(pair.control), "path": None},
            "caption": pair.caption,
            "target": {"bytes": png_bytes(pair.target), "path": None},
        }
        for pair in make_pairs(edits, seed, count, start)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=1024)
    return Path(path)
