"""Warnings about single rows, for a person who looks through a dataset. Every row's images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..config.columns import Columns
from ..errors import BadImage, BadInput
from .cells import Block
from .downloads import Downloads
from .image_refs import ImageRef, image_ref, is_absent, read_bytes
from .images import EncodedImage
from .resize import Size
from .row_blocks import RowBlocks
from .validation import looks_swapped

GRID = 64
"""Boxes on a side that two pictures are compared in; a judgement: an edit of a 64th of the picture shows."""

NEAR_LEVELS = 8
"""Largest difference of two boxes, of 255, in pictures that are nearly the same; a judgement: above what saving as JPEG
changes, below every edit that a person sees."""

SHAPE_TOLERANCE = 0.03
"""Relative difference of two aspect ratios that is no warning; a judgement: rounding to a model's sizes is below."""

Kind = Literal["unreadable", "same", "swapped", "near", "shape", "emptyCaption"]


@dataclass(frozen=True, slots=True)
class RowWarnings:
    """Warnings about one row."""

    row: int
    """Row of the file, from 0."""
    kinds: tuple[Kind, ...]
    """In the order of Kind, the worst first; empty for a row that looks right."""
    values: dict[str, Any] = field(default_factory=dict)
    """`why` and `column` of what is unreadable, `levels` of a small difference, `control` and `target` sizes."""


def scan_rows(path: Path, columns: Columns, root: Path, start: int = 0) -> Iterator[RowWarnings]:
    """Look at the rows of a parquet from `start` on, in bounded memory. Images behind URLs are not downloaded.

    Raises BadInput where the file is damaged.
    """
    blocks, unused = RowBlocks(path, columns.names), Downloads()
    try:
        for block in blocks:
            for row in range(max(block.first, start), block.first + block.rows):
                yield _look_at(block, row, columns, lambda reference: read_bytes(reference, root, unused))
    finally:
        blocks.close()


def _look_at(block: Block, row: int, columns: Columns, read: Callable[[ImageRef], bytes]) -> RowWarnings:
    values: dict[str, Any] = {}
    index = row - block.first
    try:
        caption = block.columns[0][index]
        empty = not isinstance(caption, str) or not caption.strip()
    except UnicodeDecodeError:
        return RowWarnings(row, ("unreadable",), {"column": columns.caption, "why": "is not valid UTF-8 text"})
    pictures: dict[str, _Picture] = {}
    for name, cells in zip(columns.names[1:], block.columns[1:], strict=True):
        try:
            cell = cells[index]
            if name == columns.image or not is_absent(cell):
                pictures[name] = _Picture(image_ref(cell), read)
        except (BadInput, UnicodeDecodeError) as error:
            values = {"column": name, "why": str(error)}
    found: list[Kind] = ["unreadable"] if values else []
    target = pictures.pop(columns.image, None)
    if target is not None and not values:
        found += _compare(list(pictures.values()), target, values, len(columns.controls) == 1)
    return RowWarnings(row, (*found, *(("emptyCaption",) if empty else ())), values)


class _Picture:
    """A picture, small; only its name where it is behind a URL."""

    def __init__(self, reference: ImageRef, read: Callable[[ImageRef], bytes]) -> None:
        """Read and decode it. Raises BadInput."""
        value = reference.value
        self.name = "" if isinstance(value, bytes) else urlsplit(value).path if reference.kind == "url" else value
        self.data = b"" if reference.kind == "url" else read(reference)
        self.size: Size | None = None
        self.boxes: np.ndarray | None = None
        """uint8 [GRID, GRID, 3]: mean colors."""
        if self.data:
            encoded = EncodedImage(self.data)
            self.size = encoded.size
            small = encoded.shrink(4 * GRID).resize((GRID, GRID), Image.Resampling.BOX)
            self.boxes = np.asarray(small)


def _compare(controls: list[_Picture], target: _Picture, values: dict[str, Any], check_shape: bool) -> Iterator[Kind]:
    levels = [found for control in controls if (found := _difference(control, target)) is not None]
    if 0 in levels and any(_same(control, target) for control in controls):
        yield "same"
        return
    if any(looks_swapped(control.name, target.name) for control in controls):
        yield "swapped"
    if levels and min(levels) < NEAR_LEVELS:
        values["levels"] = min(levels)
        yield "near"
    sizes = [picture.size for picture in (*controls, target) if picture.size is not None]
    if check_shape and len(sizes) == 2 and _other_shape(*sizes):
        values |= {"control": list(sizes[0]), "target": list(sizes[1])}
        yield "shape"


def _other_shape(one: Size, other: Size) -> bool:
    return abs(one.width * other.height / (one.height * other.width) - 1) > SHAPE_TOLERANCE


def _difference(one: _Picture, other: _Picture) -> int | None:
    """Largest difference of two boxes, 0 to 255; None where a picture is not read."""
    if one.boxes is None or other.boxes is None:
        return None
    return int(np.abs(one.boxes.astype(np.int16) - other.boxes).max())


def _same(control: _Picture, target: _Picture) -> bool:
    """Tell whether both show the same in full size."""
    try:
        same = control.data == target.data
        return same or EncodedImage(control.data).digest() == EncodedImage(target.data).digest()
    except BadImage:
        return False
