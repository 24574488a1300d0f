"""Synthetic edits of simple shapes, for training and testing the embedded models.

An edit is a caption and a rule that turns one image of `scenes`, or two, into another. The embedded base models are
trained on `BASE_EDITS`, the one with several control images on `TWO_PICTURE_EDITS` too; `TAUGHT_EDITS` and
`TAUGHT_TWO_PICTURE_EDITS` are kept from them, so that a LoRA that does one of those has learned it. Edit, seed and
index determine a pair.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from .scenes import BACKGROUNDS, COLORS, MARGIN, SHAPES, SIZE, Color, Scene, draw, random_scene

FRAME_WIDTH = 6
"""Width of the taught frame in pixels."""


_RESIZE_FACTOR = 1.5


_LARGEST_OF_TWO = 15.0
"""Largest radius in edits of two pictures, in pixels."""


SIDES: tuple[str, ...] = ("left", "right", "top", "bottom")


class EditPair(NamedTuple):
    """Training example: the image before, the instruction, the image after."""

    control: Image.Image
    caption: str
    target: Image.Image
    control_2: Image.Image | None = None
    """The second image before, of edits that need two."""

    @property
    def controls(self) -> list[Image.Image]:
        """The images before."""
        return [self.control] if self.control_2 is None else [self.control, self.control_2]


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
    near, far = MARGIN + scene.radius, SIZE - MARGIN - scene.radius
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


def _recolor_as(rng: random.Random) -> EditPair:
    one, two = _two_scenes(rng)
    return _pair(one, two, "make it the color of picture 2", replace(one, color=two.color))


def _reshape_as(rng: random.Random) -> EditPair:
    one, two = _two_scenes(rng)
    return _pair(one, two, "turn it into the shape of picture 2", replace(one, shape=two.shape))


def _background_as(rng: random.Random) -> EditPair:
    one, two = _two_scenes(rng)
    return _pair(one, two, "put it on the background of picture 2", replace(one, background=two.background))


def _move_as(rng: random.Random) -> EditPair:
    one, two = _two_scenes(rng)
    return _pair(one, two, "move it to the center of picture 2", replace(one, x=two.x, y=two.y))


def _join(rng: random.Random) -> EditPair:
    one, two = (draw(scene) for scene in _two_scenes(rng))
    target = one.copy()
    target.paste(two.crop((SIZE // 2, 0, SIZE, SIZE)), (SIZE // 2, 0))
    return EditPair(one, "replace the right side with picture 2", target, two)


def _two_scenes(rng: random.Random) -> tuple[Scene, Scene]:
    """Draw two scenes of different shapes, each with room for the other's in its place."""
    reach = MARGIN + _LARGEST_OF_TWO
    one, two = (
        replace(
            random_scene(rng, largest=_LARGEST_OF_TWO),
            x=rng.uniform(reach, SIZE - reach),
            y=rng.uniform(reach, SIZE - reach),
        )
        for _ in range(2)
    )
    return one, replace(two, shape=_other(rng, SHAPES, one.shape, str))


def _pair(one: Scene, two: Scene, caption: str, target: Scene) -> EditPair:
    return EditPair(draw(one), caption, draw(target), draw(two))


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
    "recolor_as": _recolor_as,
    "reshape_as": _reshape_as,
    "background_as": _background_as,
    "move_as": _move_as,
    "join": _join,
}


BASE_EDITS: tuple[str, ...] = ("recolor", "reshape", "background", "grow", "shrink", "move", "remove")


TWO_PICTURE_EDITS: tuple[str, ...] = ("recolor_as", "reshape_as", "background_as", "move_as")
"""Base edits whose target needs both of two control images."""


TAUGHT_EDITS: tuple[str, ...] = ("frame", "invert", "mirror", "swap")


TAUGHT_TWO_PICTURE_EDITS: tuple[str, ...] = ("join",)


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
    """Write `count` pairs as a parquet with the columns control, caption, target and, if any of the edits needs two
    pictures, control_2.

    The images are Hugging Face `datasets` structs {bytes, path} that hold PNG bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pairs = list(make_pairs(edits, seed, count, start))
    columns = {
        "control": pa.array([_image_cell(pair.control) for pair in pairs], image_type),
        "caption": pa.array([pair.caption for pair in pairs], pa.string()),
        "target": pa.array([_image_cell(pair.target) for pair in pairs], image_type),
    }
    if any(pair.control_2 for pair in pairs):
        columns["control_2"] = pa.array([_image_cell(pair.control_2) for pair in pairs], image_type)
    pq.write_table(pa.table(columns), path, row_group_size=1024)
    return Path(path)


def _image_cell(image: Image.Image | None) -> dict[str, bytes | None] | None:
    return image and {"bytes": png_bytes(image), "path": None}
