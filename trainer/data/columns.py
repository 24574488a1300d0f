"""Which columns of an unknown parquet are probably the caption, the control image and the target image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ..errors import BadInput
from .parquet import is_image, is_text, open_parquet
from .row_blocks import RowBlocks

ColumnKind = Literal["image", "text", "either", "other"]
"""What a column can serve as; `either`: text without a row that tells."""


LOOKED_AT = 8
"""First rows whose text tells captions from paths."""


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


_PICTURE = re.compile(r"https?://|data:image/|.*\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif)(\?.*)?$", re.IGNORECASE)


_CONTROL = re.compile(
    r"\b(controls?|ctrl|sources?|src|inputs?|in|before|originals?|orig|old|from|init|initial|pre|cond|condition|"
    r"conditioning|reference|ref|start|unedited|raw|base)\b"
)


_TARGET = re.compile(
    r"\b(targets?|tgt|outputs?|out|after|edited|edit|results?|new|to|post|final|label|gt|truth|modified|changed|end|"
    r"generated)\b"
)


_PICTURE_WORD = re.compile(r"\b(images?|img|pictures?|pic|photos?)\b")


_NOT_THE_PICTURE = re.compile(
    r"\b(masks?|depth|thumbs?|thumbnails?|preview|canny|pose|seg|segmentation|embeddings?|hash|id|name|md5)\b"
)


_OF_ONE_PICTURE = re.compile(r"\b(source|original|input|before|target|edited|output|after|negative|neg)\b")


_CAPTION = {
    "instruction": 9,
    "instructions": 9,
    "edit": 8,
    "prompt": 7,
    "prompts": 7,
    "caption": 7,
    "captions": 7,
    "command": 6,
    "request": 6,
    "task": 3,
    "text": 5,
    "description": 4,
    "txt": 5,
}


def guess_columns(path: Path) -> dict[str, str]:
    """The request's column fields that names, types and first rows decide; what they leave open is left out.

    Raises BadInput when the file is not a readable parquet.
    """
    kinds = column_kinds(path)
    images = [name for name, kind in kinds.items() if kind in ("image", "either")]
    control = _best({name: _picture_score(name, _CONTROL, _TARGET) for name in images})
    target = _best({name: _picture_score(name, _TARGET, _CONTROL) for name in images if name != control})
    pictures = [name for name in images if kinds[name] == "image" and not _NOT_THE_PICTURE.search(_words(name))]
    if len(pictures) == 2 and (control is None) != (target is None):
        other = next(name for name in pictures if name not in (control, target))
        control, target = control or other, target or other
    texts = [name for name, kind in kinds.items() if kind in ("text", "either") and name not in (control, target)]
    caption = _best({name: _caption_score(name) for name in texts})
    if caption is None and len(only := [name for name in texts if kinds[name] == "text"]) == 1:
        caption = only[0]
    guess = {"caption_column": caption, "control_image_column": control, "image_column": target}
    return {field: name for field, name in guess.items() if name is not None}


def column_kinds(path: Path) -> dict[str, ColumnKind]:
    """What each column can serve as, by its type and, for text, by its first rows. Columns of one name are left out.

    Raises BadInput when the file is not a readable parquet.
    """
    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
    types = {field.name: field.type for field in schema if len(schema.get_all_field_indices(field.name)) == 1}
    looks = first_texts(path, [name for name, kind in types.items() if is_text(kind) and not pa.types.is_null(kind)])
    return {name: _kind(kind, looks.get(name, [])) for name, kind in types.items()}


def first_texts(path: Path, columns: list[str]) -> Mapping[str, list[str]]:
    """The texts of the first rows of text columns, without nulls. Raises BadInput where the file is damaged."""
    if not columns:
        return {}
    blocks = RowBlocks(path, columns)
    try:
        cells = blocks.block(0).columns if blocks.rows else ()
        return {name: _texts(part.text) for name, part in zip(blocks.columns, cells, strict=False)}
    finally:
        blocks.close()


def _texts(array: pa.Array | None) -> list[str]:
    try:
        return [] if array is None else [text for text in array[:LOOKED_AT].to_pylist() if text]
    except UnicodeDecodeError:
        raise BadInput("The first rows hold text that is not UTF-8.") from None


def _kind(kind: pa.DataType, texts: list[str]) -> ColumnKind:
    if is_text(kind):
        if not texts:
            return "either"
        return "image" if all(_PICTURE.match(text) for text in texts) else "text"
    return "image" if is_image(kind) else "other"


def _words(name: str) -> str:
    """`editedImage_2` as `edited image 2`."""
    return " ".join(_WORD.findall(name)).lower()


def _picture_score(name: str, own: re.Pattern[str], other: re.Pattern[str]) -> int:
    """Above 0 for a name that tells: `control` and `control_image` more than `control_mask`; `image` alone tells a
    little, of the target."""
    words = _words(name)
    score = 10 * bool(own.search(words)) - 10 * bool(other.search(words)) - 12 * bool(_NOT_THE_PICTURE.search(words))
    if score == 0 and own is _TARGET and _PICTURE_WORD.search(words):
        return 2
    return score - (0 if _PICTURE_WORD.search(words) else words.count(" "))


def _caption_score(name: str) -> int:
    words = _words(name)
    score = sum(_CAPTION.get(word, 0) for word in words.split())
    # What the one or the other picture shows is not what to do.
    return score - 8 * bool(_OF_ONE_PICTURE.search(words))


def _best(scores: Mapping[str, int]) -> str | None:
    """The first of the highest score above 0."""
    best = max(scores.values(), default=0)
    return next(name for name, score in scores.items() if score == best) if best > 0 else None
