"""Check of the cells of a dataset's rows: nulls, texts that are too long, and what cannot name an image."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.columns import Columns
from ..errors import BadImage
from .cells import Block, Cells, by_value
from .image_refs import image_ref, local_file
from .report import LISTED_ROWS, BadRow

MAX_TEXT_BYTES = 1 << 16
"""Bytes of a caption, path or URL; a judgement: models read a few kilobytes of a caption, and paths are shorter."""


_SUSPICIOUS = r"^[/\\]|^iVBORw|^UklGR|^R0lGOD|:|\.\.|[\x00-\x1f\x7f]|^[^!-~]*$"


_PLAIN_URL = r"^(?i:https?)://([A-Za-z0-9-]+\.)+[A-Za-z][A-Za-z-]*(:[0-9]+)?(/[!-~]*)?$"
"""URLs of hosts that have a name of several parts, which no numeric address is."""


NO_CONTROL = "the row has no control image; set allow_no_control to train it as text to image"
"""Fault of a row all of whose control images are left out."""


@dataclass(frozen=True)
class CheckedBlock:
    """A block in the check, with the cells of control images that are left out: null or empty ones, where a row may do
    without them."""

    block: Block
    columns: Columns
    allow_no_control: bool
    """A row may have no control image at all."""

    @property
    def optional(self) -> bool:
        """True if a row may do without one of the control images."""
        return self.allow_no_control or len(self.columns.controls) > 1

    @cached_property
    def controls(self) -> list[tuple[str, Cells, np.ndarray]]:
        """Column, cells and, bool [rows], the cells that are left out, of each column of control images."""
        cells = self.block.columns[1 : 1 + len(self.columns.controls)]
        absent = [part.absent if self.optional else self._none for part in cells]
        return list(zip(self.columns.controls, cells, absent, strict=True))

    @property
    def images(self) -> list[tuple[str, Cells, np.ndarray]]:
        """Column, cells and left-out cells, as in `controls`, of every column of images; the target is last."""
        return [*self.controls, *self._masks, (self.columns.image, self.block.columns[-1], self._none)]

    @property
    def _masks(self) -> list[tuple[str, Cells, np.ndarray]]:
        """The column of masks, as in `controls`; a row may do without."""
        cells = self.block.columns[-2]
        return [(self.columns.mask, cells, cells.absent)] if self.columns.mask else []

    @cached_property
    def without_control(self) -> np.ndarray:
        """bool [rows]: rows that have no control image and need one."""
        if self.allow_no_control or not self.optional:
            return self._none
        return np.logical_and.reduce([absent for _, _, absent in self.controls])

    def unusable(self) -> np.ndarray:
        """bool [rows]: rows with a cell that is null, or a text of more than MAX_TEXT_BYTES, or without a control."""
        faults = [_unusable(cells) & ~absent for _, cells, absent in self.images]
        return np.logical_or.reduce([_unusable(self.block.columns[0]), *faults, self.without_control])

    @property
    def _none(self) -> np.ndarray:
        return np.zeros(self.block.rows, dtype=bool)


def suspicious_cells(cells: Cells) -> np.ndarray:
    """bool [rows]: cells that `image_ref` may refuse; a cheap filter with no false negatives."""
    mask = cells.null
    if cells.text is not None:
        odd = by_value(cells.text, _odd_texts)
        mask = mask | (odd.fill_null(False).to_numpy(zero_copy_only=False) & ~cells.has_data)
    if cells.data is not None:
        mask = mask | (by_value(cells.data, pc.binary_length).fill_null(-1).to_numpy() == 0)
    return mask


def _odd_texts(texts: pa.LargeStringArray) -> pa.BooleanArray:
    odd = pc.match_substring_regex(texts, _SUSPICIOUS)
    odd = pc.and_not(odd, pc.match_substring_regex(texts, _PLAIN_URL))
    return pc.or_(odd, pc.greater(pc.binary_length(texts), MAX_TEXT_BYTES))


def cell_faults(checked: CheckedBlock, root: Path | None) -> Iterator[BadRow]:
    """Yield the faults of a block's cells, ordered by row. With `root`, files missing below it are faults."""
    block, columns = checked.block, checked.columns
    found = [_rows(_caption_faults(block.columns[0]), block, columns.caption)]
    found += [_rows(_image_faults(cells, root, absent), block, name) for name, cells, absent in checked.images]
    none = np.flatnonzero(checked.without_control)[:LISTED_ROWS].tolist()
    return heapq.merge(*found, _rows(((index, NO_CONTROL) for index in none), block, columns.controls[0]))


def _rows(faults: Iterator[tuple[int, str]], block: Block, name: str) -> Iterator[BadRow]:
    return (BadRow(block.first + index, name, why) for index, why in faults)


def _caption_faults(cells: Cells) -> Iterator[tuple[int, str]]:
    odd = np.full(len(cells), not is_unicode(cells))
    for index, text in _texts(cells, odd):
        if isinstance(text, _Fault):
            yield index, text


def _image_faults(cells: Cells, root: Path | None, absent: np.ndarray) -> Iterator[tuple[int, str]]:
    """Faults of cells, except those that `absent`, bool [rows], leaves out."""
    odd = suspicious_cells(cells) if is_unicode(cells) else np.ones(len(cells), dtype=bool)
    if root is not None:
        odd = odd | ~cells.has_data
    for index, value in _texts(cells, odd & ~absent, "; store images as bytes (binary), not as text", absent):
        try:
            if isinstance(value, _Fault):
                yield index, value
                continue
            reference = image_ref(value)
            if root is not None and reference.kind == "path" and isinstance(reference.value, str):
                local_file(reference.value, root)
        except BadImage as error:
            yield index, error.reason


class _Fault(str):
    """Fault of a cell whose content is not looked at."""


def _texts(
    cells: Cells, odd: np.ndarray, hint: str = "", absent: np.ndarray | None = None
) -> Iterator[tuple[int, str | bytes | None]]:
    """Yield cells with their indices: those that `odd`, bool [rows], selects, and a _Fault for the first unusable
    ones, with a hint on texts that are too long. Those that `absent`, bool [rows], leaves out are not unusable.

    There may be millions of the latter, which `check_rows` marks as bad by itself.
    """
    unusable = _unusable(cells) if absent is None else _unusable(cells) & ~absent
    indices = [np.flatnonzero(odd & ~unusable), np.flatnonzero(unusable)[:LISTED_ROWS]]
    null = cells.null
    for index in np.sort(np.concatenate(indices)).tolist():
        try:
            if unusable[index]:
                yield index, _Fault("is null" if null[index] else f"is longer than {MAX_TEXT_BYTES:,} bytes{hint}")
            else:
                yield index, cells[index]
        except UnicodeDecodeError:
            yield index, _Fault("is not valid UTF-8 text")


def _unusable(cells: Cells) -> np.ndarray:
    """bool [rows]: cells that are null, and texts of more than MAX_TEXT_BYTES."""
    if cells.text is None:
        return cells.null
    lengths = by_value(cells.text, pc.binary_length).fill_null(0).to_numpy()
    return cells.null | ((lengths > MAX_TEXT_BYTES) & ~cells.has_data)


def is_unicode(cells: Cells) -> bool:
    """Tell whether the texts of a column are UTF-8."""
    try:
        if cells.text is not None:
            cells.text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
