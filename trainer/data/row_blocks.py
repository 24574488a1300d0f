"""Rows of a parquet in blocks of bounded size, read in order or at random, whatever types the columns have."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import BadInput
from .parquet import arrow_reason, open_parquet

BLOCK_BYTES = 16 * 2**20
"""Size of a block, as stored, uncompressed; a judgement: a few dozen embedded images, read in well under a second."""


CACHED_BLOCKS = 4
"""Blocks in the cache; a judgement: 64 MB at most, for shuffled reads within a few row groups."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One column of a block. A cell is its bytes (`data`) if it has them, else its text, else null."""

    text: pa.LargeStringArray | None
    data: pa.LargeBinaryArray | None

    def __len__(self) -> int:
        column = self.text if self.text is not None else self.data
        return 0 if column is None else len(column)

    def __getitem__(self, index: int) -> str | bytes | None:
        """Raises UnicodeDecodeError for text that is not UTF-8."""
        data = None if self.data is None else self.data[index].as_py()
        return data if data is not None or self.text is None else self.text[index].as_py()

    @property
    def null(self) -> np.ndarray:
        """bool [rows]: cells that are null."""
        parts = [part.is_null() for part in (self.text, self.data) if part is not None]
        both = parts[0] if len(parts) == 1 else pc.and_(*parts)
        return both.to_numpy(zero_copy_only=False)

    @property
    def has_data(self) -> np.ndarray:
        """bool [rows]: cells that are bytes."""
        if self.data is None:
            return np.zeros(len(self), dtype=bool)
        return self.data.is_valid().to_numpy(zero_copy_only=False)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one row group."""

    first: int
    """Row of the parquet, from 0."""
    rows: int
    columns: tuple[Cells, ...]
    """Cells of each column, in the order of `RowBlocks.columns`."""


class RowBlocks:
    """Random and sequential access to some columns of a parquet. Thread-safe.

    Row groups larger than BLOCK_BYTES are read in several blocks; the last CACHED_BLOCKS blocks are cached. pyarrow has
    no random access by row, and its datasets read whole row groups, which may be gigabytes of embedded images.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open `path`. The columns must exist, once each. Raises BadInput when the file is not a readable parquet."""
        self.path = path
        self.columns = list(dict.fromkeys(columns))
        self._file = open_parquet(path)
        metadata = self._file.metadata
        self.rows = metadata.num_rows
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(group.num_rows for group in groups)]
        self._block_rows = [_block_rows(group, self.columns) for group in groups]
        self._cached: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead: tuple[int, int, Iterator[Block]] = (-1, 0, iter(()))
        """Row group being read, its next row, and an iterator over its remaining blocks."""

    def __iter__(self) -> Iterator[Block]:
        """Iterate over all blocks in order, without caching. Raises BadInput where the file is damaged."""
        with open_parquet(self.path) as file:
            for group in range(len(self._block_rows)):
                yield from self._read(file, group)

    def block(self, row: int) -> Block:
        """Read the block that holds a row, counted from 0.

        Cheap for rows near each other; a row far into a large row group costs reading that row group up to it. Raises
        BadInput where the file is damaged.
        """
        group = bisect_right(self._starts, row) - 1
        size = self._block_rows[group]
        first = self._starts[group] + (row - self._starts[group]) // size * size
        with self._lock:
            if first in self._cached:
                self._cached.move_to_end(first)
                return self._cached[first]
            ahead, following, blocks = self._ahead
            if ahead != group or following > first:
                blocks = self._read(self._file, group)
            block = next(block for block in blocks if block.first == first)
            self._ahead = (group, first + size, blocks)
            self._cached[first] = block
            while len(self._cached) > CACHED_BLOCKS:
                self._cached.popitem(last=False)
            return block

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._cached.clear()
            self._ahead = (-1, 0, iter(()))
            self._file.close()

    def _read(self, file: pq.ParquetFile, group: int) -> Iterator[Block]:
        size, first, end = self._block_rows[group], self._starts[group], self._starts[group + 1]
        try:
            parts: list[pa.RecordBatch] = []
            for batch in file.iter_batches(size, row_groups=[group], columns=self.columns):
                parts.append(batch)
                rows = sum(part.num_rows for part in parts)
                if rows == min(size, end - first):
                    yield Block(first, rows, tuple(_cells([part.column(n) for part in parts]) for n in self.columns))
                    first, parts = first + rows, []
        except (pa.ArrowException, OSError) as error:
            raise BadInput(
                f"{self.path} is damaged: row group {group} (rows {self._starts[group]} to {end - 1}) cannot be read: "
                f"{arrow_reason(error)}"
            ) from None
        if first != end:
            raise BadInput(f"{self.path} is damaged: row group {group} ends at row {first} of {end}.")


def _block_rows(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    prefixes = tuple(f"{column}." for column in columns)
    chunks = (group.column(index) for index in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(prefixes))
    return max(1, min(group.num_rows, group.num_rows * BLOCK_BYTES // max(size, 1)))


def _cells(arrays: list[pa.Array]) -> Cells:
    parts = [_split(array) for array in arrays]
    text, data = ([part[index] for part in parts if part[index] is not None] for index in (0, 1))
    return Cells(pa.concat_arrays(text) if text else None, pa.concat_arrays(data) if data else None)


def _split(array: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
    """Text and data of a column of any type that `parquet.is_image` or `is_text` accepts."""
    while isinstance(array, pa.ExtensionArray) or pa.types.is_dictionary(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.dictionary_decode()
    if pa.types.is_struct(array.type):
        names = [array.type.field(index).name for index in range(array.type.num_fields)]
        inner = {name: _split(pc.struct_field(array, [index])) for index, name in enumerate(names)}
        return inner.get("path", (None, None))[0], inner.get("bytes", (None, None))[1]
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.large_string()), pa.nulls(len(array), pa.large_binary())
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.large_string()), None
    return None, array.cast(pa.large_binary())
