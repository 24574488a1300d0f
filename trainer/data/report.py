"""Report on a checked dataset: image sizes, bad rows and warnings."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config.columns import Columns
from ..errors import BadInput
from .image_refs import MissingFile, hub_snapshot
from .resize import Size

LISTED_ROWS = 20
"""Bad rows listed in a report; a judgement: enough to see a pattern, few enough to read."""


FEW_ROWS = 3
"""Rows of missing images that a message still lists one by one; a judgement."""


class BadRow(NamedTuple):
    """A fault in one row."""

    row: int
    """Row of the parquet, from 0."""
    column: str
    why: str

    @property
    def missing_file(self) -> tuple[str, str] | None:
        """Path and folder of an image file that does not exist; None for any other fault."""
        return (self.why.path, self.why.folder) if isinstance(self.why, MissingFile) else None


@dataclass(frozen=True, slots=True)
class SizeStats:
    """Sizes of the sampled images of one column, ordered by area. Aspect is width / height."""

    smallest: Size
    median: Size
    largest: Size
    min_aspect: float
    max_aspect: float

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> SizeStats | None:
        """Statistics of image sizes; None if there are none."""
        if not sizes:
            return None
        ordered = sorted(sizes, key=lambda size: size.width * size.height)
        aspects = [size.width / size.height for size in sizes]
        return cls(ordered[0], ordered[len(ordered) // 2], ordered[-1], min(aspects), max(aspects))

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return f"{_pixels(self.smallest)} pixels"
        return (
            f"{_pixels(self.smallest)} to {_pixels(self.largest)} pixels, median {_pixels(self.median)}, "
            f"aspect {self.min_aspect:.2f} to {self.max_aspect:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        sizes = {"smallest": list(self.smallest), "median": list(self.median), "largest": list(self.largest)}
        return {**sizes, "min_aspect": self.min_aspect, "max_aspect": self.max_aspect}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """Result of checking a dataset: `str()` for people, `to_dict()` for JSON."""

    path: Path
    columns: Columns
    rows: int
    bad_rows: int
    """Number of rows with a fault."""
    bad: tuple[BadRow, ...]
    """The faults of the first LISTED_ROWS bad rows."""
    sampled: int
    """Number of rows whose images were decoded."""
    control_sizes: tuple[SizeStats | None, ...]
    """By column."""
    without_control: tuple[int, ...]
    """Number of good rows without the control image of each column."""
    target_sizes: SizeStats | None
    warnings: tuple[str, ...]
    files: tuple[tuple[str, int], ...] = ()
    """Names and first rows of the dataset's files, where there are several."""
    left_out: int = 0
    """Rows that a person has left out; they are not among `rows`."""
    edited_captions: int = 0

    def file_and_row(self, row: int) -> tuple[str, int]:
        """Name of the file that a row is in, empty where there is only one, and the number of the row in it."""
        if not self.files:
            return "", row
        name, first = self.files[bisect_right(self.files, row, key=lambda file: file[1]) - 1]
        return name, row - first

    def place(self, row: int) -> str:
        """Say where a row is: by its number, and in a dataset of several files by the file and the row in it."""
        name, number = self.file_and_row(row)
        return f"{name}, row {number}" if name else f"row {number}"

    @property
    def good_rows(self) -> int:
        """Number of rows that can be used for training."""
        return self.rows - self.bad_rows

    @property
    def missing_files(self) -> tuple[str, str] | None:
        """Path of the first image file and its folder, in a dataset of which no file exists; None for any other."""
        if self.good_rows or not self.bad or not all(fault.missing_file for fault in self.bad):
            return None
        return self.bad[0].missing_file

    def bad_row_lines(self) -> list[str]:
        """Listed faults, one line each, then the number of further bad rows."""
        lines = [f"{self.place(fault.row)}, column {_quoted(fault.column)}: {fault.why}" for fault in self.bad]
        more = self.bad_rows - len({fault.row for fault in self.bad})
        return [*lines, f"and {_rows(more)} more"] if more else lines

    def __str__(self) -> str:
        usable = "all usable" if not self.bad_rows else f"{self.good_rows} usable, {self.bad_rows} bad"
        lines = [
            f"{self.path.name}: {_rows(self.rows)}, {usable}",
            f"  caption  {_quoted(self.columns.caption)}",
            *self._control_lines(),
            f"  target   {_quoted(self.columns.image)}: {self.target_sizes or 'no image decoded'}",
        ]
        if self.sampled < self.good_rows:
            lines.append(f"  (sizes from a sample of {_rows(self.sampled)}; every image is checked before training)")
        if edits := self._edits():
            lines.append(f"  {edits}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.bad_rows:
            lines += ["  bad rows (counted from 0):", *(f"    {line}" for line in self.bad_row_lines())]
        return "\n".join(lines)

    def _edits(self) -> str:
        """Say what a person has edited; empty for nothing."""
        left_out = [f"{_rows(self.left_out)} left out"] if self.left_out else []
        captions = [f"{_rows(self.edited_captions, 'caption')} edited"] if self.edited_captions else []
        return f"edits    {', '.join([*left_out, *captions])}" if left_out or captions else ""

    def _control_lines(self) -> Iterator[str]:
        """One line for each column of control images."""
        for name, sizes, missing in zip(self.columns.controls, self.control_sizes, self.without_control, strict=True):
            without = f" (none in {_rows(missing)})" if missing else ""
            yield f"  control  {_quoted(name)}: {sizes or 'no image decoded'}{without}"

    def _fault_dict(self, fault: BadRow) -> dict[str, Any]:
        name, number = self.file_and_row(fault.row)
        return fault._asdict() | ({"file": name, "row_of_file": number} if name else {})

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON. Those of control images are lists where there are several columns of them."""
        sizes: list[Any] = [sizes and sizes.to_dict() for sizes in self.control_sizes]
        several = len(sizes) > 1 or any(self.without_control)
        return {
            "path": str(self.path),
            **self.columns.to_fields(),
            "rows": self.rows,
            "good_rows": self.good_rows,
            "bad_rows": self.bad_rows,
            "bad": [self._fault_dict(fault) for fault in self.bad],
            "sampled": self.sampled,
            "control_sizes": sizes if len(sizes) > 1 else sizes[0],
            **({"without_control": list(self.without_control)} if several else {}),
            "target_sizes": self.target_sizes and self.target_sizes.to_dict(),
            "warnings": list(self.warnings),
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"edited_captions": self.edited_captions} if self.edited_captions else {}),
        }


def first_bad_rows(faults: Iterable[BadRow]) -> list[BadRow]:
    """Faults of the first LISTED_ROWS rows in `faults`, which are ordered by row."""
    first: list[BadRow] = []
    rows = 0
    for fault in faults:
        rows += not first or fault.row != first[-1].row
        if rows > LISTED_ROWS:
            break
        first.append(fault)
    return first


class BadRows(BadInput):
    """Rows of a dataset that cannot be used. The message says which they are, and what to do."""

    def __init__(self, report: DatasetReport) -> None:
        super().__init__(_bad_rows_message(report))
        self.report = report


def _bad_rows_message(report: DatasetReport) -> str:
    if report.missing_files and (snapshot := hub_snapshot(report.path)):
        repository = snapshot.parent.parent.name.removeprefix("datasets--").replace("--", "/")
        return (
            f"{report.path}: the pictures of this dataset are files beside its parquet, which alone is downloaded "
            f"from the Hugging Face hub; {report.bad_row_lines()[0]}.\nDownload the others too, and start again:\n"
            f"  hf download {repository} --repo-type dataset --revision {snapshot.name}"
        )
    if report.missing_files and report.bad_rows > FEW_ROWS:
        return (
            f"{report.path}: no rows left, as the images that the {_rows(report.rows)} name are not there; "
            f"{report.bad_row_lines()[0]}.\nRelative paths start at the parquet's folder, or at images_root: put the "
            "images there, or set images_root to the folder that the paths start from."
        )
    lines = "".join(f"\n  - {line}" for line in report.bad_row_lines())
    if not report.good_rows:
        return f"{report.path}: no rows left, all {report.rows} are bad (counted from 0):{lines}"
    return (
        f"{report.path} has {_rows(report.bad_rows, 'bad row')} of {report.rows} (counted from 0):{lines}\n"
        'Fix or remove them, or set bad_rows to "skip" to train without them.'
    )


def _rows(number: int, noun: str = "row") -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _pixels(size: Size) -> str:
    return f"{size.width} x {size.height}"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
