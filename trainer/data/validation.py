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
from PIL import Image, ImageChops

from ..config.request import Columns
from ..errors import BadImage
from ..events import Progress
from .column_words import image_role
from .image_refs import ImageRef, image_ref, local_file
from .images import decode_image
from .report import BadRow, first_bad_rows
from .resize import Size
from .row_blocks import Block, Cells, RowBlocks

SAMPLED_ROWS = 256
"""Rows whose images are decoded; a judgement: a fault in 2 % of the rows is found with 99 % probability."""


MAX_ROWS_FOR_FILE_CHECK = 10_000
"""Largest dataset, in rows, in which the existence of every file is checked, not only that of the sample; a judgement,
as lookups on network drives are slow."""


DECODERS = 4
"""Decoding threads; a judgement: more would mostly wait for the disk or the network."""


_SUSPICIOUS = r"^[/\\]|:|\.\.|[\x00-\x1f\x7f]|^[^!-~]*$"


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
class _Pair:
    row: int
    control: ImageRef
    target: ImageRef


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
            pairs = [_pair(block, row) for row in rows.tolist() if findings.good[row]]
            decodings = [pool.submit(_decode_pair, pair, columns, fetch) for pair in pairs]
            for _ in as_completed(decodings):
                yield Progress(phase="checking", done=block.first, total=blocks.rows, note="rows")
            for pair, decoding in zip(pairs, decodings, strict=True):
                _add_decoding(findings, pair, decoding.result())
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
        odd = pc.match_substring_regex(cells.text, _SUSPICIOUS)
        odd = pc.and_not(odd, pc.match_substring_regex(cells.text, _PLAIN_URL))
        mask = mask | (odd.fill_null(False).to_numpy(zero_copy_only=False) & ~cells.has_data)
    if cells.data is not None:
        mask = mask | pc.equal(pc.binary_length(cells.data), 0).fill_null(False).to_numpy(zero_copy_only=False)
    return mask


def _pair(block: Block, row: int) -> _Pair:
    _, control, target = block.columns
    index = row - block.first
    return _Pair(row, image_ref(control[index]), image_ref(target[index]))


def _cell_faults(block: Block, columns: Columns, root: Path | None) -> Iterator[BadRow]:
    """Yield the faults of a block's cells, ordered by row. With `root`, files missing below it are faults."""
    caption, control, target = block.columns
    found = (_caption_faults(caption), _image_faults(control, root), _image_faults(target, root))
    return heapq.merge(*(_rows(faults, block, name) for faults, name in zip(found, columns.names, strict=True)))


def _rows(faults: Iterator[tuple[int, str]], block: Block, name: str) -> Iterator[BadRow]:
    return (BadRow(block.first + index, name, why) for index, why in faults)


def _caption_faults(cells: Cells) -> Iterator[tuple[int, str]]:
    odd = cells.null if _is_unicode(cells) else np.ones(len(cells), dtype=bool)
    for index in np.flatnonzero(odd).tolist():
        try:
            if cells[index] is None:
                yield index, "is null"
        except UnicodeDecodeError:
            yield index, "is not valid UTF-8 text"


def _image_faults(cells: Cells, root: Path | None) -> Iterator[tuple[int, str]]:
    odd = suspicious_cells(cells) if _is_unicode(cells) else np.ones(len(cells), dtype=bool)
    if root is not None:
        odd = odd | ~cells.has_data
    for index in np.flatnonzero(odd).tolist():
        try:
            reference = image_ref(cells[index])
            if root is not None and reference.kind == "path" and isinstance(reference.value, str):
                local_file(reference.value, root)
        except UnicodeDecodeError:
            yield index, "is not valid UTF-8 text"
        except BadImage as error:
            yield index, str(error)


def _is_unicode(cells: Cells) -> bool:
    try:
        if cells.text is not None:
            cells.text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decode_pair(
    pair: _Pair, columns: Columns, fetch: Callable[[ImageRef], bytes]
) -> tuple[Size, Size, bool] | list[BadRow]:
    """Decode a pair: control size, target size and whether the pixels are equal, or the faults."""
    images, faults = [], []
    for name, reference in zip((columns.control_image, columns.image), (pair.control, pair.target), strict=True):
        try:
            images.append(decode_image(fetch(reference)))
        except BadImage as error:
            faults.append(BadRow(pair.row, name, str(error)))
    if faults:
        return faults
    control, target = images
    return Size(*control.size), Size(*target.size), control.size == target.size and _same_pixels(control, target)


def _same_pixels(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


def _add_decoding(findings: Findings, pair: _Pair, decoding: tuple[Size, Size, bool] | list[BadRow]) -> None:
    if isinstance(decoding, list):
        findings.add(decoding)
        return
    control_size, target_size, same = decoding
    findings.control_sizes.append(control_size)
    findings.target_sizes.append(target_size)
    findings.same_pixels += same
    findings.swapped_paths += looks_swapped(_path_of(pair.control), _path_of(pair.target))


def _add_cells(findings: Findings, block: Block) -> None:
    caption, control, target = block.columns
    findings.same_cells += int(np.count_nonzero(_same_cells(control, target)))
    if caption.text is None or not _is_unicode(caption):
        return
    findings.empty_captions += int(pc.sum(pc.equal(pc.utf8_trim_whitespace(caption.text), "")).as_py() or 0)


def _same_cells(control: Cells, target: Cells) -> np.ndarray:
    same = np.zeros(len(control), dtype=bool)
    if control.data is not None and target.data is not None:
        same |= pc.equal(control.data, target.data).fill_null(False).to_numpy(zero_copy_only=False)
    if control.text is not None and target.text is not None:
        texts = pc.equal(control.text, target.text).fill_null(False).to_numpy(zero_copy_only=False)
        same |= texts & ~control.has_data & ~target.has_data
    return same


def _path_of(reference: ImageRef) -> str:
    if isinstance(reference.value, bytes):
        return ""
    return urlsplit(reference.value).path if reference.kind == "url" else reference.value
