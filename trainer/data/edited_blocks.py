"""Rows of a dataset as a person has edited it: without those that are left out, and with the edited captions."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from .cells import Block, Cells
from .row_blocks import CACHED_BYTES, RowBlocks
from .row_edits import edits_file, read_edits

LISTED_FILES = 3
"""Files that a message lists; a judgement."""


class EditedBlocks:
    """Blocks of a dataset as if it had been written without the rows that are left out, and with the edited captions.

    Rows are numbered as in that dataset: everything that is drawn by row is drawn as for it. Thread-safe.
    """

    def __init__(self, blocks: RowBlocks, left_out: Sequence[int], captions: Mapping[int, str]) -> None:
        """`blocks` have the column of captions first. Raises BadInput where all rows are left out."""
        self._blocks = blocks
        self.path, self.columns, self.file_names = blocks.path, blocks.columns, blocks.file_names
        kept = np.ones(blocks.rows, dtype=bool)
        kept[np.asarray(left_out, dtype=np.int64)] = False
        if blocks.rows and not kept.any():
            raise BadInput(
                f"{blocks.path}: no rows left, all {blocks.rows} are left out. Take some back in the dataset node, or "
                f"delete {', '.join(str(edits_file(file.path)) for file in blocks.files[:LISTED_FILES])}."
            )
        self._kept = np.flatnonzero(kept)
        self._texts = {row: captions[row] for row in sorted(captions) if kept[row]}
        self._edited_rows = np.fromiter(self._texts, dtype=np.int64)
        self._cached: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()
        self.rows = len(self._kept)
        self.left_out, self.edited_captions = len(left_out), len(self._texts)

    def file_row(self, row: int) -> int:
        """Row that a row has with those that are left out."""
        return int(self._kept[row])

    def __iter__(self) -> Iterator[Block]:
        """Iterate over all blocks in order, without caching. Raises BadInput where the file is damaged."""
        for block in self._blocks:
            edited = self._edited(block)
            if edited.rows:
                yield edited

    def block(self, row: int) -> Block:
        """Read the block that holds a row, as `RowBlocks.block` does."""
        block = self._blocks.block(self.file_row(row))
        with self._lock:
            edited = self._cached.pop(block.first, None) or self._edited(block)
            self._cached[block.first] = edited
            while len(self._cached) > 1 and sum(cached.size for cached in self._cached.values()) > CACHED_BYTES:
                self._cached.popitem(last=False)
        return edited

    def close(self) -> None:
        """Close the file."""
        self._cached.clear()
        self._blocks.close()

    def _edited(self, block: Block) -> Block:
        """Make the block of the rows that are kept of a block; there may be none."""
        first, end = np.searchsorted(self._kept, (block.first, block.first + block.rows)).tolist()
        columns = block.columns
        start, stop = np.searchsorted(self._edited_rows, (block.first, block.first + block.rows))
        if edited := self._edited_rows[start:stop].tolist():
            texts = {row - block.first: self._texts[row] for row in edited}
            columns = (_with_texts(columns[0], texts), *columns[1:])
        if end - first < block.rows:
            rows = pa.array(self._kept[first:end] - block.first)
            columns = tuple(_taken(cells, rows) for cells in columns)
        return Block(first, end - first, columns, block.size)


def edited_blocks(blocks: RowBlocks, caption_column: str) -> RowBlocks | EditedBlocks:
    """Apply the edits of a dataset's files to its blocks, which have the column of captions first; without any, return
    the same blocks. Raises BadInput as `read_edits` does, and where all rows are left out."""
    edits = {file.first: read_edits(file.path) for file in blocks.files}
    if not any(edits.values()):
        return blocks
    left_out = [first + row for first, found in edits.items() for row in found.left_out]
    captions = {
        first + row: text
        for first, found in edits.items()
        for row, text in found.captions.get(caption_column, {}).items()
    }
    return EditedBlocks(blocks, left_out, captions)


def _with_texts(cells: Cells, texts: Mapping[int, str]) -> Cells:
    """Replace the texts of some cells, by their indices; a dictionary array stays one."""
    text = cells.text if cells.text is not None else pa.nulls(len(cells), pa.large_string())
    new, at = pa.array(list(texts.values()), pa.large_string()), np.fromiter(texts, dtype=np.int64)
    if pa.types.is_dictionary(text.type):
        places = text.indices.cast(pa.int64()).fill_null(-1).to_numpy().copy()
        places[at] = len(text.dictionary) + np.arange(len(new))
        values = pa.concat_arrays([text.dictionary, new])
        return Cells(pa.DictionaryArray.from_arrays(pa.array(places, mask=places < 0), values), cells.data)
    mask = np.zeros(len(text), dtype=bool)
    mask[at] = True
    return Cells(pc.replace_with_mask(text, pa.array(mask), new), cells.data)


def _taken(cells: Cells, rows: pa.Array) -> Cells:
    text, data = (None if part is None else part.take(rows) for part in (cells.text, cells.data))
    return Cells(text, data)
