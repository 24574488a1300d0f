"""Parquet files: opening them, their columns, and the check that a request's columns fit."""

from __future__ import annotations

import difflib
import io
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.columns import COLUMN_FIELDS, CONTROL_COLUMNS
from ..errors import BadInput, first_line
from .arrow_rows import is_arrow, read_index
from .dataset_files import dataset_files
from .thrift import count_structs

MAX_COLUMNS = 5000
"""Columns of a parquet, counting each part of a struct; a judgement: datasets of pictures have a few dozen."""


LISTED_COLUMNS, MAX_NAME = 50, 200
"""Columns listed in a message, and characters of a name that are shown or compared; a judgement."""


CHUNK_DEPTH = 3
"""Depth of a column chunk's struct in the footer: below the file's metadata and a row group."""


MAX_FOOTER = 32 * 2**20
"""Bytes of a footer; a judgement: some ten million rows in small row groups."""


UNWEIGHED_FOOTER = 2 * 2**20
"""Bytes of a footer whose structs need not be counted: at three bytes each they take 430 MB."""


MAX_CHUNKS = 600_000
"""Column chunks that a footer describes. Measured with pyarrow 26: 1 KB of memory each."""


def open_parquet(
    path: Path,
    metadata: pq.FileMetaData | None = None,
    dictionaries: Collection[str] = (),
    content: bytes | None = None,
) -> pq.ParquetFile:
    """Open a parquet for streaming: column chunks are read piece by piece.

    `metadata` is that of the same file if it was open before, `content` is all of it if that is in memory; the leaf
    columns `dictionaries` are read as dictionary arrays. Raises BadInput when the file is not readable.
    """
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder; name a parquet file in it.")
        if not (path.stat().st_size if content is None else content):
            raise BadInput(f"{path} is empty (0 bytes).")
        if metadata is None:
            with path.open("rb") if content is None else io.BytesIO(content) as file:
                _check_footer(file)
        parquet = pq.ParquetFile(
            path if content is None else pa.BufferReader(content),
            metadata=metadata,
            read_dictionary=list(dictionaries) or None,
            buffer_size=1 << 20,
            pre_buffer=False,
        )
        if parquet.metadata.num_columns > MAX_COLUMNS:
            raise ValueError(f"it has {parquet.metadata.num_columns:,} columns; at most {MAX_COLUMNS:,} are looked at")
        return parquet
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist.") from None
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read as a parquet file: {first_line(error)}") from None


def _check_footer(file: BinaryIO) -> None:
    """Raise ValueError or IndexError for a footer that would take gigabytes of memory."""
    if file.read(23) == b"version https://git-lfs":
        raise ValueError("it is a Git LFS pointer, the file itself was not downloaded; run `git lfs pull`")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    if length > MAX_FOOTER:
        raise ValueError(f"its footer of {length:,} bytes is too large; write it again with larger row groups")
    if UNWEIGHED_FOOTER < length <= size - 8:
        file.seek(size - 8 - length)
        chunks = count_structs(file.read(length))[CHUNK_DEPTH]
        if chunks > MAX_CHUNKS:
            raise ValueError(
                f"its footer describes {chunks:,} pieces of columns; write it again with larger row groups"
            )


def read_schema(path: Path) -> pa.Schema:
    """Read the schema of a dataset's files, as `dataset_files` finds them. Raises BadInput when one is not readable,
    and for files whose columns differ."""
    first, *others = dataset_files(path)
    schema = _file_schema(first)
    for other in others:
        check_same_columns(first, schema, other, _file_schema(other))
    return schema


def _file_schema(path: Path) -> pa.Schema:
    if is_arrow(path):
        return read_index(path).schema
    with open_parquet(path) as parquet:
        return parquet.schema_arrow


def check_same_columns(one: Path, schema: pa.Schema, other: Path, other_schema: pa.Schema) -> None:
    """Raise BadInput naming two files of a dataset whose columns differ in their names or kinds."""
    for name in dict.fromkeys([*schema.names, *other_schema.names]):
        kinds, other_kinds = _kinds(schema, name), _kinds(other_schema, name)
        if kinds != other_kinds and not (kinds and other_kinds and "null" in kinds + other_kinds):
            raise BadInput(
                f"{one} and {other} cannot be read as one dataset: the column {_quoted(name)} "
                f"{_held(kinds)} in the one and {_held(other_kinds)} in the other. Name a pattern that leaves one of "
                "them out, or write both with the same columns."
            )


def _held(kinds: list[str]) -> str:
    return f"holds {', '.join(kinds)}" if kinds else "is missing"


def _kinds(schema: pa.Schema, name: str) -> list[str]:
    """Kinds of the columns of one name."""
    return [_kind(schema.field(index).type) for index in schema.get_all_field_indices(name)]


def _kind(kind: pa.DataType) -> str:
    """Kind of a column's values: types that differ only in how they are stored are of one kind."""
    kind = storage_type(kind)
    if pa.types.is_null(kind):
        return "null"
    return "text" if _is_string(kind) else "bytes" if _is_binary(kind) else str(kind)


def parquet_columns(path: Path) -> dict[str, str]:
    """Read the column names and types of a dataset's files. Raises BadInput as `read_schema` does."""
    return {field.name: str(field.type) for field in read_schema(path)}


def column_faults(params: Mapping[str, Any], path: Path) -> list[str]:
    """Faults of the column fields in `params` for a parquet, one line each: field, value and the existing columns.

    Missing or empty fields are ignored. Raises BadInput when the file is not a parquet.
    """
    schema = read_schema(path)
    named = named_columns(params)
    faults = [fault for field, column in named.items() for fault in _column_fault(field, column, schema, path)]
    fields = list(named)
    for number, field in enumerate(fields):
        twin = next((other for other in fields[:number] if named[other] == named[field]), None)
        if twin:
            faults.append(f"{field}: {_quoted(named[field])} is also the {twin}; each needs a column of its own")
    return faults


def named_columns(params: Mapping[str, Any]) -> dict[str, str]:
    """Columns by the fields that name them: caption, control images, target. A list gives a field for each of its
    items, such as `control_image_columns.0`; `control_image_column_2` and further ones are fields of a node."""
    caption, control, image = COLUMN_FIELDS
    columns = params.get(CONTROL_COLUMNS)
    names = columns if isinstance(columns, list) else []
    listed = {f"{CONTROL_COLUMNS}.{index}": name for index, name in enumerate(names)}
    more = {field: params[field] for field in params if field.startswith(f"{control}_")}
    named = {caption: params.get(caption), control: params.get(control), **listed, **more, image: params.get(image)}
    named |= {"mask_column": params.get("mask_column")}
    return {field: column for field, column in named.items() if isinstance(column, str) and column}


def _column_fault(field: str, column: str, schema: pa.Schema, path: Path) -> list[str]:
    indices = schema.get_all_field_indices(column)
    if not indices:
        names = list(dict.fromkeys(schema.names))
        exist = ", ".join(_quoted(name) for name in names[:LISTED_COLUMNS]) or "none"
        exist += f" and {len(names) - LISTED_COLUMNS} more" if len(names) > LISTED_COLUMNS else ""
        # Comparing takes the product of the lengths.
        lowered = {name.lower(): name for name in reversed(names) if len(name) <= MAX_NAME}
        close = difflib.get_close_matches(column.lower()[:MAX_NAME], lowered, n=1)
        hint = f" (did you mean {_quoted(lowered[close[0]])}?)" if close else ""
        return [f"{field}: {_quoted(column)} is not a column of {path.name}{hint}; its columns are {exist}"]
    if len(indices) > 1:
        return [f"{field}: {path.name} has {len(indices)} columns named {_quoted(column)}; rename all but one"]
    kind = schema.field(indices[0]).type
    if field == "caption_column" and not is_text(kind):
        return [f"{field}: {_quoted(column)} holds {kind}, it must hold text"]
    if field != "caption_column" and not is_image(kind):
        return [
            f"{field}: {_quoted(column)} holds {kind}, it must hold paths or URLs (text), image bytes (binary) "
            "or {bytes, path} structs"
        ]
    return []


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type can hold captions. A column of nulls can: its rows are at fault."""
    kind = storage_type(kind)
    return _is_string(kind) or pa.types.is_null(kind)


def is_image(kind: pa.DataType) -> bool:
    """Tell whether a column of this type can hold image references."""
    kind = storage_type(kind)
    if pa.types.is_struct(kind):
        fields = {kind.field(index).name: storage_type(kind.field(index).type) for index in range(kind.num_fields)}
        return bool(fields) and all(
            (name == "bytes" and (_is_binary(part) or pa.types.is_null(part)))
            or (name == "path" and (_is_string(part) or pa.types.is_null(part)))
            for name, part in fields.items()
        )
    return _is_string(kind) or _is_binary(kind) or pa.types.is_null(kind)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Storage type below extension types and dictionaries."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
