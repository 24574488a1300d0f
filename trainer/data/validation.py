"""Check of a dataset before training: the cells of every row, and the pixels of a sample of rows."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.columns import Columns
from ..errors import BadImage
from ..events import Progress
from .cell_checks import CheckedBlock, cell_faults, is_unicode
from .cells import Block, Cells, by_value
from .column_words import image_role
from .edited_blocks import EditedBlocks
from .image_refs import ImageRef, image_ref, is_absent
from .images import EncodedImage
from .report import BadRow, first_bad_rows
from .resize import Size
from .row_blocks import RowBlocks

SAMPLED_ROWS = 256
"""Rows whose images are decoded; a judgement: a fault in 2 % of the rows is found with 99 % probability."""


MAX_ROWS_FOR_FILE_CHECK = 10_000
"""Largest dataset, in rows, in which the existence of every file is checked, not only that of the sample; a judgement,
as lookups on network drives are slow."""


DECODERS = 4
"""Decoding threads; a judgement: more would mostly wait for the disk or the network."""


@dataclass
class Findings:
    """Results of the check."""

    good: np.ndarray
    """bool [rows]: rows without a fault."""
    bad: list[BadRow] = field(default_factory=list)
    """The faults of the first LISTED_ROWS bad rows."""
    sampled: int = 0
    """Rows whose images were decoded."""
    control_sizes: dict[str, list[Size]] = field(default_factory=dict)
    """By column."""
    target_sizes: list[Size] = field(default_factory=list)
    same_pixels: int = 0
    """Sampled rows in which a control and the target have equal pixels."""
    same_cells: int = 0
    """Rows in which a control and the target are the same path, URL or bytes."""
    swapped_paths: int = 0
    """Sampled rows in which a control's path names an output and the target's an input."""
    empty_captions: int = 0
    without_control: dict[str, int] = field(default_factory=dict)
    """Good rows whose cell is null or empty, by the column of control images that has such rows."""

    def add(self, faults: Iterable[BadRow]) -> None:
        """Mark rows bad and list the first faults. `faults` are ordered by row."""

        def marked() -> Iterator[BadRow]:
            for fault in faults:
                self.good[fault.row] = False
                yield fault

        stream = marked()
        self.bad = first_bad_rows(sorted(self.bad + first_bad_rows(stream)))
        for _ in stream:
            pass


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Sizes of a row's images, and whether a control is the target and looks swapped with it."""

    controls: dict[str, Size]
    """By column."""
    target: Size
    same: bool
    swapped: bool


def check_rows(
    blocks: RowBlocks | EditedBlocks,
    columns: Columns,
    root: Path,
    fetch: Callable[[ImageRef], bytes],
    allow_no_control: bool = False,
) -> Generator[Progress, None, Findings]:
    """Check all rows of `blocks`, which have the columns `columns.names` in this order.

    Where there are several columns of control images, a row needs one of them, and none with `allow_no_control`. Every
    row is checked for nulls, types, empty values and paths outside `root`; datasets of up to
    MAX_ROWS_FOR_FILE_CHECK rows also for missing files. The images of SAMPLED_ROWS evenly spaced rows are read with
    `fetch` and decoded.
    """
    findings = Findings(np.ones(blocks.rows, dtype=bool))
    sample = np.linspace(0, max(blocks.rows - 1, 0), min(blocks.rows, SAMPLED_ROWS)).round().astype(np.int64)
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="check-images")
    try:
        for block in blocks:
            checked = CheckedBlock(block, columns, allow_no_control)
            findings.add(cell_faults(checked, root if blocks.rows <= MAX_ROWS_FOR_FILE_CHECK else None))
            rows = sample[(sample >= block.first) & (sample < block.first + block.rows)]
            findings.good[block.first : block.first + block.rows] &= ~checked.unusable()
            places = {row: _places(block, row) for row in rows.tolist() if findings.good[row]}
            # Rows that share both images are decoded once.
            decodings = {
                place: pool.submit(_decode_pair, block, row, columns, fetch)
                for place, row in {place: row for row, place in places.items()}.items()
            }
            for _ in as_completed(decodings.values()):
                yield Progress(phase="checking", done=block.first, total=blocks.rows, note="rows")
            for row, place in places.items():
                _add_decoding(findings, row, decodings[place].result())
            _add_cells(findings, checked)
            yield Progress(phase="checking", done=block.first + block.rows, total=blocks.rows, note="rows")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return findings


def looks_swapped(control: str, target: str) -> bool:
    """Tell whether names speak of an output as the control and of an input as the target."""
    return image_role(control) == "output" and image_role(target) == "input"


def _places(block: Block, row: int) -> tuple[int, ...]:
    """Places of the images of a row in its block."""
    return tuple(place for cells in block.columns[1:] for place in cells.place(row - block.first))


def _decode_pair(
    block: Block, row: int, columns: Columns, fetch: Callable[[ImageRef], bytes]
) -> _Decoded | dict[str, str]:
    """Decode the images of a row. Returns what is wrong by column if that fails."""
    images, names, faults = {}, {}, {}
    for name, cells in zip(columns.names[1:], block.columns[1:], strict=True):
        try:
            # Here, in the thread: the cells of all rows to be decoded may be gigabytes.
            cell = cells[row - block.first]
            if name != columns.image and is_absent(cell):
                continue
            reference = image_ref(cell)
            names[name] = _path_of(reference)
            images[name] = EncodedImage(fetch(reference)).digest()
        except BadImage as error:
            faults[name] = error.reason
    if faults:
        return faults
    for found in (images, names):
        found.pop(columns.mask, None)
    target, path = images.pop(columns.image), names.pop(columns.image)
    swapped = any(looks_swapped(control, path) for control in names.values())
    return _Decoded({name: size for name, (size, _) in images.items()}, target[0], target in images.values(), swapped)


def _add_decoding(findings: Findings, row: int, decoded: _Decoded | dict[str, str]) -> None:
    if isinstance(decoded, dict):
        findings.add(BadRow(row, column, why) for column, why in decoded.items())
        return
    findings.sampled += 1
    for column, size in decoded.controls.items():
        findings.control_sizes.setdefault(column, []).append(size)
    findings.target_sizes.append(decoded.target)
    findings.same_pixels += decoded.same
    findings.swapped_paths += decoded.swapped


def _add_cells(findings: Findings, checked: CheckedBlock) -> None:
    block, caption = checked.block, checked.block.columns[0]
    target = block.columns[-1]
    same = [_same_cells(control, target) & ~absent for _, control, absent in checked.controls]
    findings.same_cells += int(np.count_nonzero(np.logical_or.reduce(same)))
    good = findings.good[block.first : block.first + block.rows]
    for name, _, absent in checked.controls:
        if missing := int(np.count_nonzero(absent & good)):
            findings.without_control[name] = findings.without_control.get(name, 0) + missing
    if caption.text is None or not is_unicode(caption):
        return
    empty = by_value(caption.text, lambda texts: pc.equal(pc.utf8_trim_whitespace(texts), ""))
    findings.empty_captions += int(pc.sum(empty).as_py() or 0)


def _same_cells(control: Cells, target: Cells) -> np.ndarray:
    same = np.zeros(len(control), dtype=bool)
    if control.data is not None and target.data is not None:
        same |= _equal(control.data, target.data)
    if control.text is not None and target.text is not None:
        same |= _equal(control.text, target.text) & ~control.has_data & ~target.has_data
    return same


def _equal(a: pa.Array, b: pa.Array) -> np.ndarray:
    """bool [rows]: equal values; null equals nothing. Values of dictionary arrays are compared once each."""
    if pa.types.is_dictionary(a.type) or pa.types.is_dictionary(b.type):
        a, b = a.dictionary_encode(), b.dictionary_encode()
        places = pc.index_in(a.dictionary, value_set=b.dictionary)
        a, b = places.take(a.indices), b.indices
    return pc.equal(a, b).fill_null(False).to_numpy(zero_copy_only=False)


def _path_of(reference: ImageRef) -> str:
    if isinstance(reference.value, bytes):
        return ""
    return urlsplit(reference.value).path if reference.kind == "url" else reference.value
