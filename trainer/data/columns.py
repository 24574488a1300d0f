"""A guess at the caption, control and target columns of a parquet, from names, types and first rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..config.columns import CONTROL_COLUMNS
from ..errors import BadInput
from .arrow_rows import is_arrow
from .column_words import CAPTION_WORDS, IMAGE_WORDS, INPUT_WORDS, OTHER_WORDS, OUTPUT_WORDS, image_role, name_words
from .dataset_files import dataset_files
from .parquet import is_image, is_text, open_parquet, read_schema
from .row_blocks import RowBlocks

ColumnKind = Literal["image", "text", "either", "other"]
"""Possible use of a column. `either`: a text column without text in its first rows."""


FIRST_ROWS = 8
"""Rows read to tell captions from image paths; a judgement: enough for a few empty cells."""


MAX_CHARACTERS = 4096
"""Characters of a cell that are looked at; a judgement: addresses and paths are shorter."""


MAX_TEXT_COLUMNS = 32
"""Text columns whose first rows are looked at; a judgement: each takes a few milliseconds."""


_ADDRESSES = ("http://", "https://", "data:image/")
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


MOST_CONTROLS = 3
"""Control columns that are guessed; as many as the dataset node has inputs for."""


def guess_columns(path: Path, most_controls: int = MOST_CONTROLS) -> dict[str, Any]:
    """Guessed columns by request field; a field without a likely column is left out. Control columns with numbered
    names, at most `most_controls`, are a list under `control_image_columns`.

    Raises BadInput when the file is not a readable parquet.
    """
    return guess_from_kinds(column_kinds(path), most_controls)


def guess_from_kinds(all_kinds: Mapping[str, ColumnKind], most_controls: int = MOST_CONTROLS) -> dict[str, Any]:
    """Guess as `guess_columns` does, from the columns' kinds."""
    kinds: dict[str, ColumnKind] = {
        name: kind for name, kind in all_kinds.items() if not name_words(name) & OTHER_WORDS
    }
    images = [name for name, kind in kinds.items() if kind in ("image", "either")]
    control = _plainest(name for name in images if image_role(name) == "input")
    target = _plainest(name for name in images if image_role(name) == "output")
    others = [name for name in images if kinds[name] == "image" and image_role(name) is None]
    if len(others) == 1 and (control is None) != (target is None):
        control, target = control or others[0], target or others[0]
    controls = _numbered([name for name in images if name != target], control, bool(target))[:most_controls]
    control = controls[0] if controls else control
    texts = [name for name, kind in kinds.items() if kind in ("text", "either") and name not in (control, target)]
    guess: dict[str, Any] = {"caption_column": _guess_caption(texts, kinds), "image_column": target}
    guess |= {CONTROL_COLUMNS: controls} if len(controls) > 1 else {"control_image_column": control}
    return {field: found for field, found in guess.items() if found is not None}


def _numbered(images: Iterable[str], control: str | None, others_are_controls: bool) -> list[str]:
    """The control's column and those that continue its name by a number, in their order: `control`, `control_2`. Where
    no control is known, the only such series among the others; empty if there is none, or a number twice."""
    series: dict[str, list[tuple[int, str]]] = {}
    for name in images:
        stem, number = _stem_and_number(name)
        series.setdefault(stem, []).append((number, name))
    if control is not None:
        chosen = series.get(_stem_and_number(control)[0], [])
    else:
        several = [found for found in series.values() if len(found) > 1]
        chosen = several[0] if others_are_controls and len(several) == 1 else []
    in_order = sorted(chosen)
    return [name for _, name in in_order] if [n for n, _ in in_order] == [*range(1, len(in_order) + 1)] else []


def _stem_and_number(name: str) -> tuple[str, int]:
    """`control` and 2 of `Control_2`; a name without a number is the first of its series."""
    numbered = re.fullmatch(r"(.*[^\d _-])[ _-]?([1-9])", name)
    return (numbered[1].lower(), int(numbered[2])) if numbered else (name.lower(), 1)


def column_kinds(path: Path) -> dict[str, ColumnKind]:
    """Kind of each column, by its type and, for text, by its first rows. Repeated names are left out.

    Raises BadInput when the file is not a readable parquet.
    """
    return first_look(path)[0]


def first_look(path: Path) -> tuple[dict[str, ColumnKind], dict[str, list[str]]]:
    """Kinds as `column_kinds` finds them, and the non-empty texts of the first rows of each text column.

    A column that cannot be read has no texts: it may be one that is not needed. Raises BadInput when the file is not a
    readable parquet.
    """
    schema = read_schema(path)
    first = dataset_files(path)[0]
    metadata = None
    if not is_arrow(first):
        with open_parquet(first) as parquet:
            metadata = parquet.metadata
    types = {field.name: field.type for field in schema if len(schema.get_all_field_indices(field.name)) == 1}
    of_text = [name for name, kind in types.items() if is_text(kind) and not pa.types.is_null(kind)]
    texts = _first_texts(first, of_text[:MAX_TEXT_COLUMNS], metadata)
    return {name: _kind(kind, texts.get(name, [])) for name, kind in types.items()}, texts


def _first_texts(path: Path, columns: list[str], metadata: pq.FileMetaData | None) -> dict[str, list[str]]:
    """Texts of a dataset's first file, which was open before if it is a parquet."""
    if not columns:
        return {}
    blocks = None
    try:
        blocks = RowBlocks(path, columns, metadata)
        cells = blocks.block(0).columns if blocks.rows else ()
        return {name: _texts(part.text) for name, part in zip(blocks.columns, cells, strict=False)}
    except BadInput:
        if len(columns) == 1:
            return {}
        return {name: texts for part in columns for name, texts in _first_texts(path, [part], metadata).items()}
    finally:
        if blocks:
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
        return []


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
