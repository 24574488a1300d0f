"""A guess at the caption, control and target columns of a parquet, from names, types and first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from .column_words import CAPTION_WORDS, IMAGE_WORDS, INPUT_WORDS, OTHER_WORDS, OUTPUT_WORDS, image_role, name_words
from .parquet import is_image, is_text, open_parquet
from .row_blocks import RowBlocks

ColumnKind = Literal["image", "text", "either", "other"]
"""Possible use of a column. `either`: a text column without text in its first rows."""


FIRST_ROWS = 8
"""Rows read to tell captions from image paths; a judgement: enough for a few empty cells."""


MAX_CHARACTERS = 4096
"""Characters of a cell that are looked at; a judgement: addresses and paths are shorter."""


_ADDRESSES = ("http://", "https://", "data:image/")
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def guess_columns(path: Path) -> dict[str, str]:
    """Guessed columns by request field; a field without a likely column is left out.

    Raises BadInput when the file is not a readable parquet.
    """
    kinds: dict[str, ColumnKind] = {
        name: kind for name, kind in column_kinds(path).items() if not name_words(name) & OTHER_WORDS
    }
    images = [name for name, kind in kinds.items() if kind in ("image", "either")]
    control = _plainest(name for name in images if image_role(name) == "input")
    target = _plainest(name for name in images if image_role(name) == "output")
    others = [name for name in images if kinds[name] == "image" and name not in (control, target)]
    if len(others) == 1 and (control is None) != (target is None):
        control, target = control or others[0], target or others[0]
    texts = [name for name, kind in kinds.items() if kind in ("text", "either") and name not in (control, target)]
    guess = {"caption_column": _guess_caption(texts, kinds), "control_image_column": control, "image_column": target}
    return {field: name for field, name in guess.items() if name is not None}


def column_kinds(path: Path) -> dict[str, ColumnKind]:
    """Kind of each column, by its type and, for text, by its first rows. Repeated names are left out.

    Raises BadInput when the file is not a readable parquet.
    """
    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
    types = {field.name: field.type for field in schema if len(schema.get_all_field_indices(field.name)) == 1}
    texts = first_texts(path, [name for name, kind in types.items() if is_text(kind) and not pa.types.is_null(kind)])
    return {name: _kind(kind, texts.get(name, [])) for name, kind in types.items()}


def first_texts(path: Path, columns: list[str]) -> Mapping[str, list[str]]:
    """Non-empty texts of the first rows of text columns. Raises BadInput where the file is damaged."""
    if not columns:
        return {}
    blocks = RowBlocks(path, columns)
    try:
        cells = blocks.block(0).columns if blocks.rows else ()
        return {name: _texts(part.text) for name, part in zip(blocks.columns, cells, strict=False)}
    finally:
        blocks.close()


def _guess_caption(texts: list[str], kinds: Mapping[str, ColumnKind]) -> str | None:
    # A text about one of the two images (`source_caption`) is not the edit.
    about_image = (INPUT_WORDS | OUTPUT_WORDS) - set(CAPTION_WORDS)
    for word in CAPTION_WORDS:
        if column := _plainest(
            name for name in texts if word in (words := name_words(name)) and not words & about_image
        ):
            return column
    certain = [name for name in texts if kinds[name] == "text"]
    return certain[0] if len(certain) == 1 else None


def _plainest(names: Iterable[str]) -> str | None:
    """The name with the fewest words besides "image": `control_image` before `control_image_large`."""
    return min(names, key=lambda name: len(name_words(name) - IMAGE_WORDS), default=None)


def _texts(array: pa.Array | None) -> list[str]:
    if array is None:
        return []
    try:
        first = array[:FIRST_ROWS].cast(pa.large_string())
        cut = pc.call_function("utf8_slice_codeunits", [first], pc.SliceOptions(0, MAX_CHARACTERS))
        return [text for text in cut.to_pylist() if text]
    except (UnicodeDecodeError, pa.ArrowInvalid):
        raise BadInput("The first rows hold text that is not UTF-8.") from None


def _kind(kind: pa.DataType, texts: list[str]) -> ColumnKind:
    if is_text(kind):
        if not texts:
            return "either"
        return "image" if all(map(_names_an_image, texts)) else "text"
    return "image" if is_image(kind) else "other"


def _names_an_image(text: str) -> bool:
    """Tell whether a text is the address or path of an image. Without a regular expression: one that backtracks takes
    hours on a text that was made for it."""
    lowered = text.lower()
    path, _, query = lowered.rpartition("?")
    return lowered.startswith(_ADDRESSES) or lowered.endswith(_EXTENSIONS) or bool(query and path.endswith(_EXTENSIONS))
