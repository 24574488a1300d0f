"""A parquet of control images, captions and target images as a dataset: opened, checked, read by row."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config.columns import Columns
from ..errors import BadInput, RunFailed, shorten
from ..events import Progress, drain
from .cells import Block, hash_cells
from .dataset_files import data_folder, find_images_root
from .digests import MISSING, FileDigests, file_states, named_files
from .downloads import Downloads
from .edited_blocks import EditedBlocks, edited_blocks
from .findings import report_findings
from .image_refs import ImageRef, image_ref, is_absent, read_bytes
from .parquet import column_faults
from .report import BadRow, BadRows, DatasetReport, first_bad_rows
from .resize import Size
from .row_blocks import RowBlocks
from .validation import check_rows


@dataclass(frozen=True, slots=True)
class EditRow:
    """One example."""

    row: int
    """Row of the parquet, from 0, without those that are left out (`EditDataset.file_row`)."""
    caption: str
    controls: tuple[ImageRef, ...]
    """Its control images, in the order of the columns; cells that are null or empty are left out."""
    target: ImageRef
    control_columns: tuple[str, ...]
    """Column of each control image."""
    mask: ImageRef | None = None
    """The mask of its loss; None where there is none."""


class EditDataset:
    """The usable rows of a checked parquet, in file order. Only a few blocks of rows are in memory at a time.

    Indices (`dataset[index]`) count usable rows only and change when `exclude` drops rows; parquet rows
    (`read_row(row)`) never change.
    """

    def __init__(
        self,
        blocks: RowBlocks | EditedBlocks,
        root: Path,
        downloads: Downloads,
        bad_rows: str,
        good: np.ndarray,
        report: DatasetReport,
        allow_no_control: bool = False,
    ) -> None:
        """Use `open_dataset`. `good` is bool [rows of the parquet]."""
        self.path = report.path
        self.columns = report.columns
        self.images_root = root
        self.downloads = downloads
        self.report = report
        self.bad_rows = bad_rows
        self.allow_no_control = allow_no_control
        self._blocks = blocks
        self._checked_rows = np.flatnonzero(good)
        self._rows = self._checked_rows
        self._fingerprint: str | None = None
        self._digests: dict[str, str] = {}
        self._sizes: dict[str, Size] = {}

    @property
    def folder(self) -> Path:
        """Folder of the dataset's files, in which the request's relative paths are looked up."""
        return data_folder(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> EditRow:
        """Raises IndexError outside of 0..len - 1."""
        if not 0 <= index < len(self._rows):
            raise IndexError(f"index {index} of {len(self._rows)} rows")
        return self.read_row(int(self._rows[index]))

    def read_row(self, row: int) -> EditRow:
        """Read the example in a row of the parquet, counted from 0."""
        return _edit_row(self._blocks.block(row), row, self.columns)

    def file_row(self, row: int) -> int:
        """Row of the file that a row is: another one where rows before it are left out."""
        return self._blocks.file_row(row) if isinstance(self._blocks, EditedBlocks) else row

    def __iter__(self) -> Iterator[EditRow]:
        """Iterate over all examples in order; faster than indexing."""
        rows = self._rows
        for block in self._blocks:
            first, end = np.searchsorted(rows, (block.first, block.first + block.rows))
            for row in rows[first:end].tolist():
                yield _edit_row(block, row, self.columns)

    def shard(self, rank: int, world_size: int) -> EditDataset:
        """Every `world_size`-th example from index `rank` on. `exclude` on a shard leaves the full dataset as it is."""
        part = copy.copy(self)
        part._rows = self._rows[rank::world_size]
        return part

    def fetch(self, reference: ImageRef) -> bytes:
        """Read or download the encoded bytes of an image. Raises BadImage when that fails."""
        return read_bytes(reference, self.images_root, self.downloads)

    def exclude(self, bad: Mapping[int, tuple[str, str]]) -> None:
        """Drop rows found bad after opening and add them to the report. `bad` maps parquet rows to (column, reason).

        Raises BadInput listing them with bad_rows "stop", or when no rows are left.
        """
        faults = [BadRow(self.file_row(row), *fault) for row, fault in sorted(bad.items())]
        self._rows = np.setdiff1d(self._rows, np.fromiter(bad, dtype=np.int64), assume_unique=True)
        self.report = replace(
            self.report,
            bad_rows=self.report.rows - len(self._rows),
            bad=tuple(first_bad_rows(sorted([*self.report.bad, *faults]))),
        )
        if bad and (self.bad_rows == "stop" or not len(self._rows)):
            raise BadRows(self.report)

    def without(self, bad: Mapping[int, tuple[str, str]]) -> EditDataset:
        """The dataset without rows that one model cannot take, as `exclude` drops them; this one stays as it is."""
        part = copy.copy(self)
        part.exclude(bad)
        return part

    def warn(self, warning: str) -> None:
        """Add a warning to the report."""
        self.report = replace(self.report, warnings=(*self.report.warnings, warning))

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of captions and image cells, and of the content of the image files.

        Covers the rows that were good on opening. Encoding and location of the parquet, the files' names and dates
        outside of the cells, and `exclude` make no difference. A picture behind a URL counts by its address.
        """
        return drain(self.compute_fingerprint())

    def compute_fingerprint(self, kept: Path | None = None) -> Generator[Progress, None, str]:
        """Compute the fingerprint once, with Progress; `kept` is a folder that keeps digests of files between runs.

        From then on `check_unchanged` knows the files.
        """
        if self._fingerprint is None:
            files = FileDigests(kept, self.images_root)
            try:
                self._fingerprint = yield from self._hash(files.read)
            finally:
                files.keep()
            self._digests, self._sizes = files.digests, files.sizes
        return self._fingerprint

    def former_fingerprint(self) -> str:
        """Compute the fingerprint of earlier versions, which counted a file by its size and modification time."""

        def states(names: Sequence[str]) -> Generator[None, None, list[str]]:
            yield from ()
            return ["missing" if s is None else f"{s[0]} {s[1]}" for s in file_states(names, self.images_root)]

        return drain(self._hash(states))

    def picture_size(self, reference: ImageRef) -> Size | None:
        """Size in pixels of an image file that the fingerprint has read; None for any other."""
        return self._sizes.get(reference.value) if isinstance(reference.value, str) else None

    def check_unchanged(self, reference: ImageRef, digest: str) -> None:
        """Raise RunFailed for an image file whose bytes, with this SHA-256, are not those in the fingerprint."""
        known = self._digests.get(reference.value) if isinstance(reference.value, str) else None
        if known not in (None, MISSING, digest):
            raise RunFailed(
                f"{shorten(str(reference))} was replaced while the run was starting. Start the run again; it takes the "
                "new picture."
            )

    def close(self) -> None:
        """Close the parquet."""
        self._blocks.close()

    def _hash(
        self, of_files: Callable[[Sequence[str]], Generator[None, None, list[str]]]
    ) -> Generator[Progress, None, str]:
        """Hash the good rows; `of_files` says what stands for each of some files."""
        cells_digests = [[hashlib.sha256() for _ in range(4)] for _ in self.columns.names]
        files_digests = [hashlib.sha256() for _ in self.columns.names[1:]]
        for block in self._blocks:
            first, end = np.searchsorted(self._checked_rows, (block.first, block.first + block.rows))
            good = np.zeros(block.rows, dtype=bool)
            good[self._checked_rows[first:end] - block.first] = True
            progress = Progress(phase="checking", done=block.first, total=self._blocks.rows, note="files")
            for cells, digests in zip(block.columns, cells_digests, strict=True):
                hash_cells(cells, digests)
            for cells, digest in zip(block.columns[1:], files_digests, strict=True):
                names, indices = named_files(cells, good & ~cells.absent)
                files = [name for name in names if "://" not in name]
                found = dict(zip(files, (yield from _with_progress(of_files(files), progress)), strict=True))
                digest.update("".join([f"{found.get(names[index], '')}\n" for index in indices]).encode())
        every = [*(digest for digests in cells_digests for digest in digests), *files_digests]
        return hashlib.sha256(b"".join(digest.digest() for digest in every)).hexdigest()


def open_dataset(
    path: Path,
    columns: Columns,
    *,
    images_root: str = "",
    bad_rows: Literal["stop", "skip"] = "stop",
    allow_no_control: bool = False,
    downloads: Downloads | None = None,
) -> Generator[Progress, None, EditDataset]:
    """Open and check a parquet, or several as one. A generator that yields Progress and returns the EditDataset
    (`yield from`, `drain`).

    `images_root` is the folder that relative image paths start from: absolute, or relative to the current folder or to
    the parquet's; empty for the parquet's folder. `downloads` stores images behind URLs; None uses a temporary folder.
    Where there are several columns of control images, a row may lack some of them, and with `allow_no_control` all.
    Rows that a person has left out and captions that they have edited (`row_edits`) make it the dataset of a parquet
    without those rows and with those captions. Raises BadInput for columns that are missing or of the wrong type, for a
    parquet without rows or with other rows than its edits, for bad rows with `bad_rows` "stop", and when no usable row
    is left.
    """
    check_columns(columns.to_fields() | ({"mask_column": columns.mask} if columns.mask else {}), path)
    root = find_images_root(images_root, path)
    downloads = downloads or Downloads()
    blocks = RowBlocks(path, columns.names)
    try:
        blocks = edited_blocks(blocks, columns.caption)
        if not blocks.rows:
            raise BadInput(f"{path} is empty: it has the columns but no rows.")
        findings = yield from check_rows(
            blocks, columns, root, lambda reference: read_bytes(reference, root, downloads), allow_no_control
        )
        report = report_findings(path, columns, findings, blocks.file_names)
        if isinstance(blocks, EditedBlocks):
            bad = tuple(fault._replace(row=blocks.file_row(fault.row)) for fault in report.bad)
            report = replace(report, bad=bad, left_out=blocks.left_out, edited_captions=blocks.edited_captions)
        if report.bad_rows and (bad_rows == "stop" or not report.good_rows):
            raise BadRows(report)
    except BaseException:  # A generator closed half way (GeneratorExit) must close the file too.
        blocks.close()
        raise
    return EditDataset(blocks, root, downloads, bad_rows, findings.good, report, allow_no_control)


def check_columns(fields: Mapping[str, Any], path: Path) -> None:
    """Check column names by request field. Raises BadInput for any that is empty, missing or of the wrong type."""
    faults = [f"{field}: is required but empty" for field, names in fields.items() if not names or "" in [*names]]
    faults += column_faults(fields, path)
    if faults:
        raise BadInput(f"{path} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _edit_row(block: Block, row: int, columns: Columns) -> EditRow:
    caption, *cells, target = (cells[row - block.first] for cells in block.columns)
    assert isinstance(caption, str)  # rows were checked
    mask = cells.pop() if columns.mask else None
    controls = [
        (name, image_ref(cell)) for name, cell in zip(columns.controls, cells, strict=True) if not is_absent(cell)
    ]
    return EditRow(
        row,
        caption,
        tuple(reference for _, reference in controls),
        image_ref(target),
        tuple(name for name, _ in controls),
        None if is_absent(mask) else image_ref(mask),
    )


def _with_progress(
    reading: Generator[None, None, list[str]], progress: Progress
) -> Generator[Progress, None, list[str]]:
    """Yield the progress for each item of a generator and return its result."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value
        yield progress
