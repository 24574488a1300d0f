"""Small parquets that ask for far more memory or time than their size suggests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .edits import png

MEGABYTE = 2**20


def repeated(value: bytes | str, rows: int) -> pa.DictionaryArray:
    """One value in every row, which a parquet holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def write(path: Path, before: object, rows: int = 200, prompt: object = None, **options: object) -> None:
    """Write an otherwise good dataset with the control images `before` in one row group."""
    columns = {"prompt": prompt or repeated("a", rows), "before": before, "after": repeated(png(3), rows)}
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=2**40)


def claims_rows(path: Path) -> None:
    """75 bytes: a footer of three columns, 2**33 rows and no row group."""

    def column(name: str) -> bytes:
        return b"\x15\x0c\x25\x02\x18" + bytes([len(name)]) + name.encode() + b"\x25\x00\x00"

    schema = b"\x15\x02\x19\x4c\x48\x01r\x15\x06\x00" + b"".join(map(column, ("prompt", "before", "after")))
    footer = schema + b"\x16\x80\x80\x80\x80\x40" + b"\x19\x0c\x00"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def null_rows(path: Path) -> None:
    pq.write_table(pa.table({name: pa.nulls(10**8) for name in ("prompt", "before", "after")}), path)


def many_columns(path: Path) -> None:
    pq.write_table(pa.table({f"column {number}": ["text"] for number in range(6000)}), path)


def long_captions(path: Path) -> None:
    captions = pa.array(["y" * 15_000_000] * 3)
    write(path, repeated(png(1), 3), 3, captions, compression="zstd", use_dictionary=False)


def same_beginnings(path: Path) -> None:
    """Captions of a megabyte, each stored as the beginning of the one before."""
    encodings = {"prompt": "DELTA_BYTE_ARRAY", "before": "PLAIN", "after": "PLAIN"}
    captions = pa.array(["x" * MEGABYTE] * 400)
    write(path, [png(1)] * 400, 400, captions, use_dictionary=False, column_encoding=encodings)


def zeros(path: Path, **options: object) -> None:
    write(path, pa.array([bytes(5 * MEGABYTE)] * 40, pa.binary()), 40, compression="zstd", **options)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "rows that only the footer has": (claims_rows, "damaged: it claims 8589934592 rows, its row groups 0"),
    "a hundred million nulls": (null_rows, "has 100,000,000 rows; at most"),
    "three million nulls": (
        lambda path: write(path, pa.nulls(3 * 10**6, pa.binary()), 3 * 10**6),
        "no rows left, all 3000000 are bad",
    ),
    "pages of zeros": (lambda path: zeros(path, use_dictionary=False), "its pages take 2.. MB of memory but 0.0 MB"),
    "a dictionary of zeros": (
        lambda path: write(path, repeated(bytes(40 * MEGABYTE), 20_000), 20_000),
        "20000 bad rows|not a PNG",
    ),
    "wide values": (
        lambda path: write(path, pa.nulls(8, pa.binary(90 * MEGABYTE)), 8),
        "each value of before takes 90",
    ),
    "many columns": (many_columns, "it has 6,000 columns; at most 5,000"),
    "long captions": (long_captions, "is longer than 65,536 bytes"),
    "the same beginnings": (same_beginnings, "is longer than 65,536 bytes"),
    "one long caption in many rows": (
        lambda path: write(path, repeated(png(1), 20_000), 20_000, repeated("y" * 20_000_000, 20_000)),
        "all 20000 are bad.*is longer than 65,536 bytes",
    ),
    "one long path in many rows": (
        lambda path: write(path, repeated("y" * 20_000_000, 20_000), 20_000),
        "all 20000 are bad.*is longer than 65,536 bytes",
    ),
}
"""Writers of files that are no use, with the pattern of what is said about each."""
