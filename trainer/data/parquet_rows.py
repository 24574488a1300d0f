"""Rows of one parquet, read by row group in blocks of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput, first_line
from .cells import Block, joined_cells
from .file_state import FileState, check_not_replaced, file_state
from .footer import Footer
from .pages import BLOCK_BYTES, BadPages, LargePages, plan_reading
from .parquet import is_text, open_parquet, storage_type

HELD_BYTES = 4 * 2**20
"""Size of a parquet that is held in memory while it is open; a judgement: ten thousands of rows of paths. Windows lets
nobody replace a file that is open, and a dataset to which examples are added is replaced by each."""


class ParquetRows:
    """Some columns of one parquet, whose rows are numbered from `first` on."""

    def __init__(self, path: Path, columns: Sequence[str], first: int, metadata: pq.FileMetaData | None = None) -> None:
        """Open `path`. The columns must exist, once each, and be of types that `is_image` or `is_text` accepts.

        `metadata` is that of the file if it was open before. Raises BadInput when the file is not a readable parquet.
        """
        self.path = path
        self.first = first
        self._columns = list(columns)
        self._state = file_state(path)
        self._files: _Files | None = _Files(path, metadata)
        known = self._files.metadata
        self.rows = known.num_rows
        self.schema: pa.Schema = self._files.schema
        try:
            with self._files.stream() as file:
                self._footer = Footer(file, known.num_columns)
        except ValueError as error:
            raise BadInput(f"{path} is damaged: {error}.") from None
        self.chunks = len(self._footer) * known.num_columns
        groups = [known.row_group(index) for index in range(min(known.num_row_groups, len(self._footer)))]
        self.starts = [0, *accumulate(group.num_rows for group in groups)]
        if self.starts[-1] != self.rows or any(group.num_rows < 0 for group in groups):
            raise BadInput(f"{path} is damaged: it claims {self.rows} rows, its row groups {self.starts[-1]}.")
        self._widths = {index: known.schema.column(index).length for index in range(known.num_columns)}

    def release(self) -> None:
        """Close the file; it is opened again when it is read. Raises nothing."""
        if self._files:
            self._files.close()
        self._files = None

    def read(self, group: int) -> Iterator[Block]:
        """Yield the blocks of a row group. Raises BadInput where the file is damaged, and RunFailed where another one
        has its name by now."""
        self._files = self._files or _Files(self.path, None, self._state)
        yield from self._read(self._files, group)

    def iterate(self) -> Iterator[Block]:
        """Yield all blocks, from handles of their own."""
        held = self._files
        files = _Files(self.path, held.metadata, None, held.content) if held else _Files(self.path, None, self._state)
        try:
            for group in range(len(self.starts) - 1):
                yield from self._read(files, group)
        finally:
            files.close()

    def may_name_files(self, column: str) -> bool:
        """Tell whether cells of an image column may lie in files, by its type and the footer's count of nulls."""
        if len(self.schema.get_all_field_indices(column)) != 1:
            return False
        kind = storage_type(self.schema.field(column).type)
        if not pa.types.is_struct(kind):
            return is_text(kind)
        try:
            chunks = (chunk for group in range(len(self._footer)) for chunk in self._footer.chunks(group))
            inside = [chunk.nulls for chunk in chunks if chunk.path == f"{column}.bytes"]
        except ValueError as error:
            raise BadInput(f"{self.path} is damaged: {error}.") from None
        return not inside or any(nulls is None or nulls for nulls in inside)

    def _read(self, files: _Files, group: int) -> Iterator[Block]:
        first, end = self.starts[group], self.starts[group + 1]
        try:
            with files.stream() as file:
                leaves = _leaves(self.schema, self._columns)
                plan = plan_reading(self._footer, group, end - first, leaves, self._widths, file)
            reader = files.open(plan.dictionaries)
            parts: list[pa.RecordBatch] = []
            for batch in reader.iter_batches(plan.batch_rows, row_groups=[group], columns=self._columns):
                parts.append(batch)
                rows, size = sum(part.num_rows for part in parts), sum(part.nbytes for part in parts)
                if rows >= plan.block_rows or size >= BLOCK_BYTES or first + rows >= end:
                    cells = tuple(joined_cells([part.column(name) for part in parts]) for name in self._columns)
                    yield Block(self.first + first, rows, cells, size)
                    first, parts = first + rows, []
        except (pa.ArrowException, OSError, BadPages) as error:
            raise BadInput(
                f"{self.path} is damaged: row group {group} (rows {self.starts[group]} to {end - 1}) cannot be read: "
                f"{first_line(error)}"
            ) from None
        except LargePages as error:
            raise BadInput(f"{self.path} cannot be used: row group {group}: {error}.") from None
        if first != end:
            raise BadInput(f"{self.path} is damaged: row group {group} ends at row {first} of {end}.")


class _Files:
    """Readers of one parquet, one for each set of columns that are read as dictionary arrays."""

    def __init__(
        self,
        path: Path,
        metadata: pq.FileMetaData | None = None,
        state: FileState = None,
        content: bytes | None = None,
    ) -> None:
        """Open the file, or its `content`. With `state`, raises RunFailed for one that was changed since."""
        self._path = path
        if state is not None:
            check_not_replaced(path, state)
        self.content = content or _small_content(path)
        first = open_parquet(path, metadata, content=self.content)
        self._open: dict[tuple[str, ...], pq.ParquetFile] = {(): first}
        self.metadata: pq.FileMetaData = first.metadata
        self.schema: pa.Schema = first.schema_arrow

    def open(self, dictionaries: tuple[str, ...]) -> pq.ParquetFile:
        if dictionaries not in self._open:
            self._open[dictionaries] = open_parquet(self._path, self.metadata, dictionaries, self.content)
        return self._open[dictionaries]

    def stream(self) -> BinaryIO:
        return self._path.open("rb") if self.content is None else io.BytesIO(self.content)

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def _small_content(path: Path) -> bytes | None:
    """Content of a file of at most HELD_BYTES; None for others, and for what is not a file."""
    try:
        if not path.is_file() or not 0 < path.stat().st_size <= HELD_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _leaves(schema: pa.Schema, columns: Sequence[str]) -> set[str]:
    """Paths of the columns' parts as parquet names them."""
    leaves = set()
    for column in columns:
        kind = storage_type(schema.field(column).type)
        parts = [kind.field(index).name for index in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        leaves |= {f"{column}.{part}" for part in parts} or {column}
    return leaves
