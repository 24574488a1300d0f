"""Which columns of an unknown parquet are probably the caption, the control image and the target image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from .resource import is_image, is_text, read_schema

_USUAL_NAMES: dict[str, tuple[Callable[[pa.DataType], bool], tuple[str, ...]]] = {
    "caption_column": (is_text, ("caption", "prompt", "instruction", "edit_prompt", "text")),
    "control_image_column": (
        is_image,
        ("control_image", "control", "source_image", "source", "input_image", "input", "before", "original_image"),
    ),
    "image_column": (
        is_image,
        ("target_image", "target", "edited_image", "edited", "output_image", "output", "after", "image"),
    ),
}


def guess_columns(path: Path) -> dict[str, str]:
    """The request's column fields that the usual names decide; what they leave open is left out.

    Raises BadInput when the file is not a readable parquet.
    """
    schema = read_schema(path)
    by_name = {field.name.lower(): field for field in reversed(list(schema))}
    guess = {}
    for request_field, (fits, names) in _USUAL_NAMES.items():
        found = next((by_name[name] for name in names if name in by_name and fits(by_name[name].type)), None)
        if found is not None:
            guess[request_field] = found.name
    return guess
