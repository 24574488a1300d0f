"""Rows of a dataset's files in blocks of bounded size, read in order or at random."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ..errors import BadInput
from .arrow_rows import ArrowRows, is_arrow
from .cells import Block
from .dataset_files import dataset_files
from .parquet import MAX_CHUNKS, check_same_columns
from .parquet_rows import ParquetRows

MAX_ROWS = 10_000_000
"""Rows of a dataset; a judgement: above every dataset of edits, and a few hundred megabytes of row numbers."""


CACHED_BYTES = 64 * 2**20
"""Size of the cached blocks; a judgement: for shuffled reads within a few row groups."""


OPEN_FILES = 8
"""Files that are open at a time; a judgement: systems allow a few hundred to a process."""


class RowBlocks:
    """Random and sequential access to some columns of a dataset, whose files are read as one. Thread-safe.

    Row groups are read in blocks of about BLOCK_BYTES; the last ones are cached. pyarrow has no random access by row,
    and its datasets read whole row groups, which may be gigabytes of embedded images.
    """

    def __init__(self, path: Path, columns: Sequence[str], metadata: pq.FileMetaData | None = None) -> None:
        """Open the files of `path`, as `dataset_files` finds them.

        The columns must exist, once each, and be of types that `is_image` or `is_text` accepts. `metadata` is that of
        a single parquet if it was open before. Raises BadInput when a file is not readable, for files whose columns
        differ, and for more than MAX_ROWS rows.
        """
        self.path = path
        self.columns = list(dict.fromkeys(columns))
        self.files: list[ParquetRows | ArrowRows] = []
        """Files in their order, with the first row of each."""
        self.rows = 0
        self._opened: OrderedDict[int, None] = OrderedDict()
        self._cached: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead: tuple[tuple[int, int], int, Iterator[Block]] = ((-1, -1), 0, iter(()))
        """File and row group being read, the next row, and an iterator over the remaining blocks."""
        try:
            self._open(metadata)
        except BaseException:  # A cancel on the way must close the files that are open too.
            self.close()
            raise
        self._starts = [file.first for file in self.files]

    @property
    def file_names(self) -> list[tuple[str, int]]:
        """Name and first row of each file, where there are several."""
        return [(file.path.name, file.first) for file in self.files] if len(self.files) > 1 else []

    def __iter__(self) -> Iterator[Block]:
        """Iterate over all blocks in order, without caching. Raises BadInput where a file is damaged."""
        for file in self.files:
            yield from file.iterate()

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
            number = bisect_right(self._starts, row) - 1
            file = self.files[number]
            group = bisect_right(file.starts, row - file.first) - 1
            ahead, following, blocks = self._ahead
            if ahead != (number, group) or following > row:
                self._use(number)
                blocks = file.read(group)
            block = next(block for block in blocks if row < block.first + block.rows)
            self._ahead = ((number, group), block.first + block.rows, blocks)
            self._cached[block.first] = block
            while len(self._cached) > 1 and sum(cached.size for cached in self._cached.values()) > CACHED_BYTES:
                self._cached.popitem(last=False)
            return block

    def may_name_files(self, column: str) -> bool:
        """Tell whether cells of an image column may lie in files; False where all of them are bytes."""
        return any(file.may_name_files(column) for file in self.files)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._cached.clear()
            self._ahead = ((-1, -1), 0, iter(()))
            for file in self.files:
                file.release()

    def _open(self, metadata: pq.FileMetaData | None) -> None:
        chunks, paths = 0, dataset_files(self.path)
        for number, path in enumerate(paths):
            if is_arrow(path):
                file = ArrowRows(path, self.columns, self.rows)
            else:
                file = ParquetRows(path, self.columns, self.rows, metadata if len(paths) == 1 else None)
            self.files.append(file)
            check_same_columns(self.files[0].path, self.files[0].schema, path, file.schema)
            self.rows += file.rows
            chunks += file.chunks
            if self.rows > MAX_ROWS:
                raise BadInput(f"{self.path} has {self.rows:,} rows; at most {MAX_ROWS:,} can be used.")
            if chunks > MAX_CHUNKS:
                raise BadInput(f"{self.path}: its files have {chunks:,} pieces of columns; write larger row groups.")
            self._use(number)

    def _use(self, number: int) -> None:
        """Count a file as open, and close the one that was read longest ago."""
        self._opened[number] = None
        self._opened.move_to_end(number)
        if len(self._opened) > OPEN_FILES:
            last, _ = self._opened.popitem(last=False)
            self.files[last].release()
