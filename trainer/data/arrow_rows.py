"""Rows of an Arrow IPC file, as the `datasets` library saves them, in blocks of bounded size.

pyarrow finds the record batches of a stream only by reading all of it. Their places are read here from the headers of
the messages; each batch is then mapped into memory, which costs only what is looked at.
Source: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput, first_line
from ..paths import path_kind
from .cells import Block, Cells, by_value, joined_cells
from .file_state import check_not_replaced, file_state
from .pages import BLOCK_BYTES, MAX_BLOCK_ROWS

MAX_HEADER_BYTES = 2**24
"""Bytes of a message's header; a judgement: thousands of columns."""

MAX_BATCHES = 200_000
"""Record batches of a file; a judgement: MAX_ROWS rows in batches of fifty."""

MAX_COLUMNS = 5000
"""Columns of a file; a judgement, as for a parquet."""

_FILE_MAGIC = b"ARROW1\0\0"
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Place of a record batch."""

    offset: int
    length: int
    """Bytes of the message with its body."""
    rows: int


@dataclass(frozen=True, slots=True)
class ArrowIndex:
    """Schema and record batches of a file."""

    schema: pa.Schema
    batches: tuple[Batch, ...]


def is_arrow(path: Path) -> bool:
    """Tell by its name whether a file is an Arrow IPC file."""
    return path.suffix.lower() == ".arrow"


def read_index(path: Path) -> ArrowIndex:
    """Find the record batches of a stream or a file. Raises BadInput when it is not readable."""
    if (kind := path_kind(path)) != "file":
        # A pipe would be waited for without end.
        raise BadInput(f"{path} does not exist." if kind == "missing" else f"{path} is not a file.")
    try:
        with path.open("rb") as file:
            return _index(file)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        raise BadInput(f"{path} cannot be read as an Arrow file: {first_line(error)}") from None


class ArrowRows:
    """Some columns of one Arrow file, whose rows are numbered from `first` on."""

    def __init__(self, path: Path, columns: Sequence[str], first: int) -> None:
        """Find the batches of `path`. Columns are as for ParquetRows. Raises BadInput."""
        self._state = file_state(path)
        index = read_index(path)
        self.path = path
        self.first = first
        self.schema = index.schema
        self.chunks = len(index.batches)
        self.starts = [0, *accumulate(batch.rows for batch in index.batches)]
        self.rows = self.starts[-1]
        self._batches = index.batches
        self._columns = list(columns)

    def release(self) -> None:
        """Do nothing: a batch is mapped while it is used."""

    def read(self, group: int) -> Iterator[Block]:
        """Yield the blocks of a record batch. Raises BadInput where it is damaged, and RunFailed where another file has
        its name by now."""
        names = self._columns
        try:
            batch = self._batch(group)
            columns = [joined_cells([self._checked(batch, name)]) for name in names]
            first = self.starts[group]
            ends = np.cumsum(sum((_sizes(cells) for cells in columns), np.zeros(batch.num_rows, np.int64)))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._damaged(group, error) from None
        start = 0
        while start < batch.num_rows:
            reached = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + BLOCK_BYTES, side="right"))
            end = min(max(start + 1, reached), start + MAX_BLOCK_ROWS, batch.num_rows)
            cells = tuple(_slice(part, start, end - start) for part in columns)
            size = int(ends[end - 1] - (ends[start - 1] if start else 0))
            yield Block(self.first + first + start, end - start, cells, size)
            start = end

    def iterate(self) -> Iterator[Block]:
        """Yield all blocks."""
        for group in range(len(self._batches)):
            yield from self.read(group)

    def may_name_files(self, column: str) -> bool:
        """Tell whether cells of an image column may lie in files: texts, and structs some of whose bytes are null."""
        if len(self.schema.get_all_field_indices(column)) != 1:
            return False
        for group in range(len(self._batches)):
            try:
                cells = joined_cells([self._checked(self._batch(group), column)])
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                raise self._damaged(group, error) from None
            if cells.text is not None and not bool(np.all(cells.has_data)):
                return True
        return False

    def _batch(self, group: int) -> pa.RecordBatch:
        place = self._batches[group]
        check_not_replaced(self.path, self._state)
        with pa.memory_map(str(self.path)) as file:
            file.seek(place.offset)
            message = pa.ipc.read_message(pa.BufferReader(file.read_buffer(place.length)))
        batch = pa.ipc.read_record_batch(message, self.schema)
        if batch.num_rows != place.rows:
            raise ValueError(f"it has {batch.num_rows} of {place.rows} rows")
        return batch

    def _checked(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column whose offsets lie in its buffers. Raises ArrowInvalid."""
        column = batch.column(name)
        column.validate(full=True)
        return column

    def _damaged(self, group: int, error: Exception) -> BadInput:
        return BadInput(
            f"{self.path} is damaged: record batch {group} (rows {self.starts[group]} to {self.starts[group + 1] - 1}) "
            f"cannot be read: {first_line(error)}"
        )


def _sizes(cells: Cells) -> np.ndarray:
    """int64 [rows]: bytes of each cell."""
    parts = [part for part in (cells.text, cells.data) if part is not None]
    return sum(
        (by_value(part, pc.binary_length).fill_null(0).to_numpy().astype(np.int64) for part in parts),
        np.zeros(len(cells), np.int64),
    )


def _slice(cells: Cells, start: int, length: int) -> Cells:
    return Cells(
        None if cells.text is None else cells.text.slice(start, length),
        None if cells.data is None else cells.data.slice(start, length),
    )


def _index(file: BinaryIO) -> ArrowIndex:
    size = file.seek(0, 2)
    file.seek(0)
    at = len(_FILE_MAGIC) if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    schema, batches = None, []
    while len(batches) <= MAX_BATCHES:
        file.seek(at)
        prefix = file.read(8)
        if not prefix or prefix[4:] == bytes(4):
            break
        mark, length = struct.unpack("<Ii", prefix)
        if mark != _CONTINUATION or not 0 < length <= MAX_HEADER_BYTES:
            raise ValueError(f"there is no message at byte {at}")
        header = _Header(file.read(length))
        end = at + 8 + length + header.body
        if header.body < 0 or end > size:
            raise ValueError(f"it is cut off: its message at byte {at} ends at byte {end} of {size}")
        if header.kind == _SCHEMA and schema is None:
            file.seek(at)
            schema = pa.ipc.read_schema(pa.BufferReader(file.read(8 + length)))
            _check_names(schema)
            if len(schema) > MAX_COLUMNS:
                raise ValueError(f"it has {len(schema):,} columns; at most {MAX_COLUMNS:,} are looked at")
        elif header.kind == _RECORD_BATCH and schema is not None:
            header.check_batch()
            batches.append(Batch(at, end - at, header.rows))
        else:
            raise ValueError("it has dictionaries, which are not read" if header.kind == _DICTIONARY else "no message")
        at = end
    if schema is None or len(batches) > MAX_BATCHES:
        raise ValueError("it is not a stream of record batches" if schema is None else "it has too many record batches")
    return ArrowIndex(schema, tuple(batches))


def _check_names(fields: pa.Schema | pa.StructType) -> None:
    """Raise UnicodeDecodeError, a ValueError, for a name that is not UTF-8: pyarrow does wherever it is looked at."""
    for index in range(len(fields)):
        field = fields.field(index)
        if field.name is not None and pa.types.is_struct(field.type):
            _check_names(field.type)


class _Header:
    """Header of a message, a flatbuffer: kind, bytes of the body, and of a record batch the rows.

    Source: https://github.com/apache/arrow/blob/main/format/Message.fbs
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        message = self._follow(0)
        kind, header, body = (self._field(message, number) for number in (1, 2, 3))
        self.kind = self._data[kind] if kind else 0
        self._header = self._follow(header) if header else 0
        self.body = struct.unpack_from("<q", data, body)[0] if body else 0
        self.rows = 0

    def check_batch(self) -> None:
        """Read the rows of a record batch. Raises ValueError where it is compressed, as it may then take any size."""
        if self._field(self._header, 3):
            raise ValueError("it is compressed; write it again without compression, or as a parquet")
        length = self._field(self._header, 0)
        self.rows = struct.unpack_from("<q", self._data, length)[0] if length else 0
        if not 0 <= self.rows <= 2**40:
            raise ValueError(f"a record batch claims {self.rows} rows")

    def _follow(self, at: int) -> int:
        """Place that an offset leads to."""
        return at + struct.unpack_from("<I", self._data, at)[0]

    def _field(self, table: int, number: int) -> int:
        """Place of a table's field; 0 where it is left out."""
        vtable = table - struct.unpack_from("<i", self._data, table)[0]
        if vtable < 0:
            raise ValueError("a header leads out of itself")
        size = struct.unpack_from("<H", self._data, vtable)[0]
        if 4 + 2 * number + 2 > size:
            return 0
        offset = struct.unpack_from("<H", self._data, vtable + 4 + 2 * number)[0]
        return table + offset if offset else 0
