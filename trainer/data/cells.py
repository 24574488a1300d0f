"""Cells of columns, whatever types the columns have, and blocks of rows of them."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .pages import BLOCK_BYTES


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


def hash_cells(cells: Cells, digests: list[Any]) -> None:
    """Hash lengths (-1 for null) and content of the cells' text and data, each into a digest of its own.

    Neither block boundaries nor the column's type make a difference. Text is ignored where the cell has data.
    """
    length = len(cells)
    text = cells.text if cells.text is not None else pa.nulls(length, pa.large_string())
    data = cells.data if cells.data is not None else pa.nulls(length, pa.large_binary())
    has_data = data.is_valid()
    for array, (lengths, content) in zip((text, data), (digests[:2], digests[2:]), strict=True):
        first = 0
        for part in plain_parts(array):
            if array is text:
                part = pc.if_else(has_data.slice(first, len(part)), pa.scalar(None, pa.large_string()), part)
            lengths.update(pc.binary_length(part).fill_null(-1).cast(pa.int64()).to_numpy().tobytes())
            first += len(part)
            present = part.drop_null()
            if len(present):
                _, offsets, buffer = present.buffers()
                ends = np.frombuffer(offsets, dtype=np.int64)[present.offset : present.offset + len(present) + 1]
                if buffer is not None:
                    content.update(memoryview(buffer)[ends[0] : ends[-1]])


def joined_cells(arrays: list[pa.Array]) -> Cells:
    """Make the cells of a column of arrays of any type that `parquet.is_image` or `is_text` accepts."""
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
