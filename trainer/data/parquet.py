"""Parquet files: opening them, their columns, and the check that a request's columns fit."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.request import COLUMN_FIELDS
from ..errors import BadInput

IMAGE_FIELDS = ("control_image_column", "image_column")


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet for streaming: column chunks are read piece by piece. Raises BadInput when it is not readable."""
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder; name the parquet file in it.")
        if path.stat().st_size == 0:
            raise BadInput(f"{path} is empty (0 bytes).")
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read as a parquet file: {arrow_reason(error)}") from None


def arrow_reason(error: Exception) -> str:
    """First line of a pyarrow error message."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def read_schema(path: Path) -> pa.Schema:
    """Read the schema of a parquet file. Raises BadInput when it is not a readable parquet."""
    with open_parquet(path) as parquet:
        return parquet.schema_arrow


def parquet_columns(path: Path) -> dict[str, str]:
    """Read the column names and types of a parquet file. Raises BadInput when it is not a readable parquet."""
    return {field.name: str(field.type) for field in read_schema(path)}


def column_faults(params: Mapping[str, Any], path: Path) -> list[str]:
    """Faults of the column fields in `params` for a parquet, one line each: field, value and the existing columns.

    Missing or empty fields are ignored. Raises BadInput when the file is not a parquet.
    """
    schema = read_schema(path)
    named = {field: params.get(field) for field in COLUMN_FIELDS}
    named = {field: column for field, column in named.items() if isinstance(column, str) and column}
    faults = [fault for field, column in named.items() for fault in _column_fault(field, column, schema, path)]
    fields = list(named)
    for number, field in enumerate(fields):
        twin = next((other for other in fields[:number] if named[other] == named[field]), None)
        if twin:
            faults.append(f"{field}: {_quoted(named[field])} is also the {twin}; each needs a column of its own")
    return faults


def _column_fault(field: str, column: str, schema: pa.Schema, path: Path) -> list[str]:
    indices = schema.get_all_field_indices(column)
    if not indices:
        exist = ", ".join(_quoted(name) for name in dict.fromkeys(schema.names)) or "none"
        close = difflib.get_close_matches(column.lower(), {name.lower(): name for name in schema.names}, n=1)
        lowered = {name.lower(): name for name in reversed(schema.names)}
        hint = f" (did you mean {_quoted(lowered[close[0]])}?)" if close else ""
        return [f"{field}: {_quoted(column)} is not a column of {path.name}{hint}; its columns are {exist}"]
    if len(indices) > 1:
        return [f"{field}: {path.name} has {len(indices)} columns named {_quoted(column)}; rename all but one"]
    kind = schema.field(indices[0]).type
    if field == "caption_column" and not is_text(kind):
        return [f"{field}: {_quoted(column)} holds {kind}, it must hold text"]
    if field in IMAGE_FIELDS and not is_image(kind):
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
