"""Rows of a parquet in blocks of bounded size, read in order or at random, whatever types the columns have."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import BadInput
from .footer import Footer
from .pages import BLOCK_BYTES, BadPages, LargePages, plan_reading
from .parquet import arrow_reason, open_parquet, storage_type

MAX_ROWS = 10_000_000
"""Rows of a parquet; a judgement: above every dataset of edits, and a few hundred megabytes of row numbers."""


CACHED_BYTES = 64 * 2**20
"""Size of the cached blocks; a judgement: for shuffled reads within a few row groups."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One column of a block. A cell is its bytes (`data`) if it has them, else its text, else null.

    Both are large strings or binaries, or dictionary arrays of these where many rows may share a value.
    """

    text: pa.LargeStringArray | pa.DictionaryArray | None
    data: pa.LargeBinaryArray | pa.DictionaryArray | None

    def __len__(self) -> int:
        column = self.text if self.text is not None else self.data
        return 0 if column is None else len(column)

    def __getitem__(self, index: int) -> str | bytes | None:
        """Raises UnicodeDecodeError for text that is not UTF-8."""
        data = None if self.data is None else self.data[index].as_py()
        return data if data is not None or self.text is None else self.text[index].as_py()

    def place(self, index: int) -> tuple[int, ...]:
        """Place where a cell's content is stored: equal for cells that share a value of a dictionary."""
        parts = [self.data] if self.data is not None and self.data[index].is_valid else [self.text, self.data]
        return tuple(
            (array.indices[index].as_py() if pa.types.is_dictionary(array.type) else index)
            for array in parts
            if array is not None
        )

    @property
    def null(self) -> np.ndarray:
        """bool [rows]: cells that are null."""
        parts = [part.is_null() for part in (self.text, self.data) if part is not None]
        both = parts[0] if len(parts) == 1 else pc.and_(*parts)
        return both.to_numpy(zero_copy_only=False)

    @property
    def absent(self) -> np.ndarray:
        """bool [rows]: cells that are null or empty, of which there is nothing to read."""
        empty = self.null
        if self.data is not None:
            empty = empty | (by_value(self.data, pc.binary_length).fill_null(-1).to_numpy() == 0)
        if self.text is not None:
            lengths = by_value(self.text, lambda texts: pc.binary_length(pc.ascii_trim_whitespace(texts)))
            empty = empty | ((lengths.fill_null(-1).to_numpy() == 0) & ~self.has_data)
        return empty

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
    size: int
    """Bytes of memory."""


class RowBlocks:
    """Random and sequential access to some columns of a parquet. Thread-safe.

    Row groups are read in blocks of about BLOCK_BYTES; the last ones are cached. pyarrow has no random access by row,
    and its datasets read whole row groups, which may be gigabytes of embedded images.
    """

    def __init__(self, path: Path, columns: Sequence[str], metadata: pq.FileMetaData | None = None) -> None:
        """Open `path`. The columns must exist, once each, and be of types that `is_image` or `is_text` accepts.

        `metadata` is that of the file if it was open before. Raises BadInput when the file is not a readable parquet,
        and for more than MAX_ROWS rows.
        """
        self.path = path
        self.columns = list(dict.fromkeys(columns))
        self._files = _Files(path, metadata)
        known = self._files.metadata
        self.rows = known.num_rows
        try:
            self._footer = Footer(path, known.num_columns)
        except ValueError as error:
            raise BadInput(f"{path} is damaged: {error}.") from None
        groups = [known.row_group(index) for index in range(min(known.num_row_groups, len(self._footer)))]
        self._starts = [0, *accumulate(group.num_rows for group in groups)]
        if self._starts[-1] != self.rows or any(group.num_rows < 0 for group in groups):
            raise BadInput(f"{path} is damaged: it claims {self.rows} rows, its row groups {self._starts[-1]}.")
        if self.rows > MAX_ROWS:
            raise BadInput(f"{path} has {self.rows:,} rows; at most {MAX_ROWS:,} can be used.")
        self._leaves = _leaves(self._files.schema, self.columns)
        self._widths = {index: known.schema.column(index).length for index in range(known.num_columns)}
        self._cached: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead: tuple[int, int, Iterator[Block]] = (-1, 0, iter(()))
        """Row group being read, its next row, and an iterator over its remaining blocks."""

    def __iter__(self) -> Iterator[Block]:
        """Iterate over all blocks in order, without caching. Raises BadInput where the file is damaged."""
        files = _Files(self.path, self._files.metadata)
        try:
            for group in range(len(self._starts) - 1):
                yield from self._read(files, group)
        finally:
            files.close()

    def block(self, row: int) -> Block:
        """Read the block that holds a row, counted from 0.

        Cheap for rows near each other; a row far into a large row group costs reading that row group up to it. Raises
        BadInput where the file is damaged.
        """
        with self._lock:
            for first, block in self._cached.items():
                if first <= row < first + block.rows:
                    self._cached.move_to_end(first)
                    return block
            group = bisect_right(self._starts, row) - 1
            ahead, following, blocks = self._ahead
            if ahead != group or following > row:
                blocks = self._read(self._files, group)
            block = next(block for block in blocks if row < block.first + block.rows)
            self._ahead = (group, block.first + block.rows, blocks)
            self._cached[block.first] = block
            while len(self._cached) > 1 and sum(cached.size for cached in self._cached.values()) > CACHED_BYTES:
                self._cached.popitem(last=False)
            return block

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._cached.clear()
            self._ahead = (-1, 0, iter(()))
            self._files.close()

    def _read(self, files: _Files, group: int) -> Iterator[Block]:
        first, end = self._starts[group], self._starts[group + 1]
        try:
            with self.path.open("rb") as file:
                plan = plan_reading(self._footer, group, end - first, self._leaves, self._widths, file)
            reader = files.open(plan.dictionaries)
            parts: list[pa.RecordBatch] = []
            for batch in reader.iter_batches(plan.batch_rows, row_groups=[group], columns=self.columns):
                parts.append(batch)
                rows, size = sum(part.num_rows for part in parts), sum(part.nbytes for part in parts)
                if rows >= plan.block_rows or size >= BLOCK_BYTES or first + rows >= end:
                    cells = tuple(_cells([part.column(name) for part in parts]) for name in self.columns)
                    yield Block(first, rows, cells, size)
                    first, parts = first + rows, []
        except (pa.ArrowException, OSError, BadPages) as error:
            raise BadInput(
                f"{self.path} is damaged: row group {group} (rows {self._starts[group]} to {end - 1}) cannot be read: "
                f"{arrow_reason(error)}"
            ) from None
        except LargePages as error:
            raise BadInput(f"{self.path} cannot be used: row group {group}: {error}.") from None
        if first != end:
            raise BadInput(f"{self.path} is damaged: row group {group} ends at row {first} of {end}.")


class _Files:
    """Readers of one parquet, one for each set of columns that are read as dictionary arrays."""

    def __init__(self, path: Path, metadata: pq.FileMetaData | None = None) -> None:
        self._path = path
        first = open_parquet(path, metadata)
        self._open: dict[tuple[str, ...], pq.ParquetFile] = {(): first}
        self.metadata: pq.FileMetaData = first.metadata
        self.schema: pa.Schema = first.schema_arrow

    def open(self, dictionaries: tuple[str, ...]) -> pq.ParquetFile:
        if dictionaries not in self._open:
            self._open[dictionaries] = open_parquet(self._path, self.metadata, dictionaries)
        return self._open[dictionaries]

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def by_value(array: pa.Array, function: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Apply an elementwise function to large strings or binaries [rows]; once to each value of a dictionary array."""
    if pa.types.is_dictionary(array.type):
        return function(array.dictionary).take(array.indices)
    return function(array)


def plain_parts(array: pa.Array) -> Iterator[pa.Array]:
    """Yield large strings or binaries [rows] in parts; those of a dictionary array decoded, of about BLOCK_BYTES."""
    if not pa.types.is_dictionary(array.type):
        yield array
        return
    ends = np.cumsum(by_value(array, pc.binary_length).fill_null(0).to_numpy(), dtype=np.int64)
    first = 0
    while first < len(array):
        start = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + BLOCK_BYTES, side="right")))
        yield array.slice(first, last - first).dictionary_decode()
        first = last


def used_values(array: pa.Array) -> pa.DictionaryArray:
    """Encode large strings or binaries [rows] as a dictionary array without unused values."""
    array = array.dictionary_encode()
    used = array.indices.dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, array.dictionary.take(used.dictionary))


def _leaves(schema: pa.Schema, columns: Sequence[str]) -> set[str]:
    """Paths of the columns' parts as parquet names them."""
    leaves = set()
    for column in columns:
        kind = storage_type(schema.field(column).type)
        parts = [kind.field(index).name for index in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        leaves |= {f"{column}.{part}" for part in parts} or {column}
    return leaves


def _cells(arrays: list[pa.Array]) -> Cells:
    parts = [_split(array) for array in arrays]
    text, data = ([part[index] for part in parts if part[index] is not None] for index in (0, 1))
    return Cells(_joined(text), _joined(data))


def _joined(arrays: list[pa.Array]) -> pa.Array | None:
    # A row group may go on without its dictionary, which makes parts of different dictionaries; pyarrow joins them.
    return pa.concat_arrays(arrays) if arrays else None


def _split(array: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
    """Text and data of a column of any type that `parquet.is_image` or `is_text` accepts."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_struct(array.type):
        names = [array.type.field(index).name for index in range(array.type.num_fields)]
        inner = {name: _split(pc.struct_field(array, [index])) for index, name in enumerate(names)}
        return inner.get("path", (None, None))[0], inner.get("bytes", (None, None))[1]
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.large_string()), pa.nulls(len(array), pa.large_binary())
    if pa.types.is_dictionary(array.type):
        text, data = _split(array.dictionary)
        text, data = (
            part if part is None else pa.DictionaryArray.from_arrays(array.indices, part) for part in (text, data)
        )
        return text, data
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.large_string()), None
    return None, array.cast(pa.large_binary())
