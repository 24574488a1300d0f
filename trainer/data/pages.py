"""Plans for reading row groups in bounded memory, made from the headers of their pages.

pyarrow decompresses a page and decodes a batch of rows whatever their size, and does not show the headers of pages. A
small file may hold pages of gigabytes, and many rows that share one value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO

from .footer import Chunk, Footer
from .thrift import NotThrift, read_struct

BLOCK_BYTES = 16 * 2**20
"""Size of a block, decoded; a judgement: a few dozen embedded images, read in well under a second."""


MAX_BLOCK_ROWS = 1 << 16
"""Rows of a block; a judgement: a few megabytes of memory for rows without content, read in a few milliseconds."""


MAX_BATCH_BYTES = 64 * 2**20
"""Bytes that pyarrow may decode at once where rows repeat values; a judgement: several copies of it fit a gigabyte."""


MAX_DICTIONARY_BYTES = 48 * 2**20
"""Size of the dictionaries of a row group that are kept as such. Measured with pyarrow 26: reading takes five times as
much memory."""


MAX_PAGE_BYTES = 64 * 2**20
"""Size of the pages that a row group has in memory at a time, decompressed, above which they must be about as large in
the file; a judgement: writers aim at pages of 1 MB, and larger ones hold images, which are compressed already."""


MAX_COMPRESSION = 2
"""Compression of pages above MAX_PAGE_BYTES; a judgement: encoded images save a few percent."""


_HEADER_BYTES, _MAX_HEADER_BYTES = 1 << 10, 1 << 20
"""Bytes read for a page's header, and where they do not suffice; a judgement: statistics make it long."""


_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3


_DICTIONARY_CODES, _PREFIXED = (2, 8), 7
"""Encodings whose values may be far larger than the page: indices into a dictionary, and DELTA_BYTE_ARRAY, which
repeats the start of the previous value. Source: https://parquet.apache.org/docs/file-format/data-pages/encodings/"""


class BadPages(ValueError):
    """Damaged pages. The message says why."""


class LargePages(ValueError):
    """Pages that take more memory than they are worth. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Sizes and columns for reading a row group."""

    block_rows: int
    """Rows of a block."""
    batch_rows: int
    """Rows that pyarrow decodes at once, at most `block_rows`."""
    dictionaries: tuple[str, ...]
    """Leaf columns that are read as dictionary arrays."""


@dataclass(slots=True)
class _Chunk:
    """Sizes of a column chunk in bytes, decompressed unless it says otherwise."""

    path: str
    width: int
    """Bytes of each value, also of those that are null; 0 where lengths differ."""
    dictionary: int = 0
    largest: int = 0
    """Largest page, the dictionary included."""
    largest_stored: int = 0
    """Its size in the file."""
    plain: int = 0
    """All data pages whose values are stored once each."""
    plain_values: int = 0
    prefixed: int = 0
    """Largest page in which values may repeat the start of the previous one."""


def plan_reading(
    footer: Footer, group: int, rows: int, leaves: Collection[str], widths: Mapping[int, int], file: BinaryIO
) -> ReadPlan:
    """Plan the reading of leaf columns in a row group of `rows` rows, from the pages' headers in `file`.

    `widths` holds the bytes of each value by the leaf's index, where they are fixed. Raises BadPages where headers are
    damaged or disagree with the footer, and LargePages.
    """
    size = file.seek(0, SEEK_END)
    try:
        wanted = [chunk for chunk in footer.chunks(group) if chunk.path in leaves]
    except ValueError as error:
        raise BadPages(str(error)) from None
    chunks = [
        _read_chunk(file, size, chunk, _Chunk(chunk.path, widths.get(chunk.index, 0) if chunk.is_fixed else 0), rows)
        for chunk in wanted
    ]
    _check_sizes(chunks)
    kept = sum(chunk.dictionary for chunk in chunks) <= MAX_DICTIONARY_BYTES
    block = batch = MAX_BLOCK_ROWS
    for chunk in chunks:
        if chunk.width:
            block = min(block, BLOCK_BYTES // chunk.width)
        elif chunk.plain:
            block = min(block, BLOCK_BYTES * chunk.plain_values // chunk.plain)
        if chunk.prefixed:
            batch = min(batch, MAX_BATCH_BYTES // chunk.prefixed)
        if chunk.dictionary and not kept and not chunk.width:
            batch = min(batch, MAX_BATCH_BYTES // chunk.dictionary)
    block = max(block, 1)
    dictionaries = tuple(chunk.path for chunk in chunks if chunk.dictionary and not chunk.width) if kept else ()
    return ReadPlan(block, min(max(batch, 1), block), dictionaries)


def _check_sizes(chunks: list[_Chunk]) -> None:
    wide = next((chunk for chunk in chunks if chunk.width > MAX_PAGE_BYTES), None)
    if wide:
        raise LargePages(f"each value of {wide.path} takes {wide.width >> 20} MB; store it as bytes of variable length")
    total, stored = sum(chunk.largest for chunk in chunks), sum(chunk.largest_stored for chunk in chunks)
    if total > MAX_PAGE_BYTES and total > stored * MAX_COMPRESSION:
        raise LargePages(
            f"its pages take {total >> 20} MB of memory but {stored / 2**20:.1f} MB in the file, as no pictures do; "
            "write it again with smaller row groups"
        )


def _read_chunk(file: BinaryIO, size: int, chunk: Chunk, found: _Chunk, rows: int) -> _Chunk:
    """Add the pages of a column chunk of `rows` values to `found`, whose sizes are zero."""
    if chunk.values != rows:
        raise BadPages(f"{found.path} has {chunk.values} of {rows} values")
    at, values = chunk.start, 0
    while values < rows:
        header, content = _read_header(file, size, at)
        kind, raw, stored = (_number(header, field) for field in (1, 2, 3))
        if raw < 0 or not 0 <= stored <= size - content:
            raise BadPages(f"{found.path} has a page that is larger than the file")
        details = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0))
        details = details if isinstance(details, dict) else {}
        count, code = _number(details, 1), _number(details, 4 if kind == _DATA_V2 else 2)
        if kind == _DICTIONARY:
            if chunk.is_bytes and count * 4 > raw:
                raise BadPages(f"{found.path} has a dictionary that is longer than its page")
            found.dictionary = raw
        elif kind in (_DATA, _DATA_V2):
            if count < 0:
                raise BadPages(f"{found.path} has a page without a number of values")
            values += count
            if code == _PREFIXED:
                found.prefixed = max(found.prefixed, raw)
            elif code not in _DICTIONARY_CODES:
                found.plain, found.plain_values = found.plain + raw, found.plain_values + count
        if raw > found.largest:
            found.largest, found.largest_stored = raw, stored
        at = content + stored
    if values != rows:
        raise BadPages(f"{found.path} has pages of {values} values for {rows} rows")
    return found


def _number(struct: dict, field: int) -> int:
    """A field of a struct; -1 where it is missing or not a number."""
    value = struct.get(field)
    return value if isinstance(value, int) else -1


def _read_header(file: BinaryIO, size: int, at: int) -> tuple[dict, int]:
    """A page's header, and the offset of the page's content."""
    for length in (_HEADER_BYTES, _MAX_HEADER_BYTES):
        if not 0 <= at < size:
            break
        file.seek(at)
        data = file.read(length)
        try:
            header, end = read_struct(data)
            return header, at + end
        except NotThrift as error:
            raise BadPages(f"the page at byte {at} has no header: {error}") from None
        except IndexError:
            continue
    raise BadPages(f"the page at byte {at} is cut short")
