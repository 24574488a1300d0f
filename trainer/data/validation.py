"""Check of a dataset before training: the cells of every row, and the pixels of a sample of rows."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions on import.
from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.request import Columns
from ..errors import BadImage
from ..events import Progress
from .column_words import image_role
from .image_refs import ImageRef, image_ref, local_file
from .images import EncodedImage
from .report import LISTED_ROWS, BadRow, first_bad_rows
from .resize import Size
from .row_blocks import Block, Cells, RowBlocks, by_value

SAMPLED_ROWS = 256
"""Rows whose images are decoded; a judgement: a fault in 2 % of the rows is found with 99 % probability."""


MAX_ROWS_FOR_FILE_CHECK = 10_000
"""Largest dataset, in rows, in which the existence of every file is checked, not only that of the sample; a judgement,
as lookups on network drives are slow."""


MAX_TEXT_BYTES = 1 << 16
"""Bytes of a caption, path or URL; a judgement: models read a few kilobytes of a caption, and paths are shorter."""


DECODERS = 4
"""Decoding threads; a judgement: more would mostly wait for the disk or the network."""


_SUSPICIOUS = r"^[/\\]|^iVBORw|^UklGR|^R0lGOD|:|\.\.|[\x00-\x1f\x7f]|^[^!-~]*$"


_PLAIN_URL = r"^(?i:https?)://([A-Za-z0-9-]+\.)+[A-Za-z][A-Za-z-]*(:[0-9]+)?(/[!-~]*)?$"
"""URLs of hosts that have a name of several parts, which no numeric address is."""


@dataclass
class Findings:
    """Results of the check."""

    good: np.ndarray
    """bool [rows]: rows without a fault."""
    bad: list[BadRow] = field(default_factory=list)
    """The faults of the first LISTED_ROWS bad rows."""
    control_sizes: list[Size] = field(default_factory=list)
    target_sizes: list[Size] = field(default_factory=list)
    same_pixels: int = 0
    """Sampled rows whose control and target have equal pixels."""
    same_cells: int = 0
    """Rows whose control and target are the same path, URL or bytes."""
    swapped_paths: int = 0
    """Sampled rows whose control path names an output and whose target path an input."""
    empty_captions: int = 0

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
    """Sizes of a row's images, and whether they are the same and look swapped."""

    control: Size
    target: Size
    same: bool
    swapped: bool


def check_rows(
    blocks: RowBlocks, columns: Columns, root: Path, fetch: Callable[[ImageRef], bytes]
) -> Generator[Progress, None, Findings]:
    """Check all rows of `blocks`, which have the columns `columns.names` in this order.

    Every row is checked for nulls, types, empty values and paths outside `root`; datasets of up to
    MAX_ROWS_FOR_FILE_CHECK rows also for missing files. The images of SAMPLED_ROWS evenly spaced rows are read with
    `fetch` and decoded.
    """
    findings = Findings(np.ones(blocks.rows, dtype=bool))
    sample = np.linspace(0, max(blocks.rows - 1, 0), min(blocks.rows, SAMPLED_ROWS)).round().astype(np.int64)
    pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="check-images")
    try:
        for block in blocks:
            findings.add(_cell_faults(block, columns, root if blocks.rows <= MAX_ROWS_FOR_FILE_CHECK else None))
            rows = sample[(sample >= block.first) & (sample < block.first + block.rows)]
            for cells in block.columns:
                findings.good[block.first : block.first + block.rows] &= ~_unusable(cells)
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
            _add_cells(findings, block)
            yield Progress(phase="checking", done=block.first + block.rows, total=blocks.rows, note="rows")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return findings


def looks_swapped(control: str, target: str) -> bool:
    """Tell whether names speak of an output as the control and of an input as the target."""
    return image_role(control) == "output" and image_role(target) == "input"


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


def _cell_faults(block: Block, columns: Columns, root: Path | None) -> Iterator[BadRow]:
    """Yield the faults of a block's cells, ordered by row. With `root`, files missing below it are faults."""
    caption, control, target = block.columns
    found = (_caption_faults(caption), _image_faults(control, root), _image_faults(target, root))
    return heapq.merge(*(_rows(faults, block, name) for faults, name in zip(found, columns.names, strict=True)))


def _rows(faults: Iterator[tuple[int, str]], block: Block, name: str) -> Iterator[BadRow]:
    return (BadRow(block.first + index, name, why) for index, why in faults)


def _caption_faults(cells: Cells) -> Iterator[tuple[int, str]]:
    odd = np.full(len(cells), not _is_unicode(cells))
    for index, text in _texts(cells, odd):
        if isinstance(text, _Fault):
            yield index, text


def _image_faults(cells: Cells, root: Path | None) -> Iterator[tuple[int, str]]:
    odd = suspicious_cells(cells) if _is_unicode(cells) else np.ones(len(cells), dtype=bool)
    if root is not None:
        odd = odd | ~cells.has_data
    for index, value in _texts(cells, odd, "; store images as bytes (binary), not as text"):
        try:
            if isinstance(value, _Fault):
                yield index, value
                continue
            reference = image_ref(value)
            if root is not None and reference.kind == "path" and isinstance(reference.value, str):
                local_file(reference.value, root)
        except BadImage as error:
            yield index, str(error)


class _Fault(str):
    """Fault of a cell whose content is not looked at."""


def _texts(cells: Cells, odd: np.ndarray, hint: str = "") -> Iterator[tuple[int, str | bytes | None]]:
    """Yield cells with their indices: those that `odd`, bool [rows], selects, and a _Fault for the first unusable
    ones, with a hint on texts that are too long.

    There may be millions of the latter, which `check_rows` marks as bad by itself.
    """
    unusable = _unusable(cells)
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


def _is_unicode(cells: Cells) -> bool:
    try:
        if cells.text is not None:
            cells.text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _places(block: Block, row: int) -> tuple[int, ...]:
    """Places of the images of a row in its block."""
    return tuple(place for cells in block.columns[1:] for place in cells.place(row - block.first))


def _decode_pair(
    block: Block, row: int, columns: Columns, fetch: Callable[[ImageRef], bytes]
) -> _Decoded | dict[str, str]:
    """Decode the images of a row. Returns what is wrong by column if that fails."""
    images, names, faults = [], [], {}
    for name, cells in zip(columns.names[1:], block.columns[1:], strict=True):
        try:
            # Here, in the thread: the cells of all rows to be decoded may be gigabytes.
            reference = image_ref(cells[row - block.first])
            names.append(_path_of(reference))
            images.append(EncodedImage(fetch(reference)).digest())
        except BadImage as error:
            faults[name] = str(error)
    if faults:
        return faults
    control, target = images
    return _Decoded(control[0], target[0], control == target, looks_swapped(*names))


def _add_decoding(findings: Findings, row: int, decoded: _Decoded | dict[str, str]) -> None:
    if isinstance(decoded, dict):
        findings.add(BadRow(row, column, why) for column, why in decoded.items())
        return
    findings.control_sizes.append(decoded.control)
    findings.target_sizes.append(decoded.target)
    findings.same_pixels += decoded.same
    findings.swapped_paths += decoded.swapped


def _add_cells(findings: Findings, block: Block) -> None:
    caption, control, target = block.columns
    findings.same_cells += int(np.count_nonzero(_same_cells(control, target)))
    if caption.text is None or not _is_unicode(caption):
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
