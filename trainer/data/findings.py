"""The report on what the check of a dataset's rows found: its figures, and warnings about what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.columns import CONTROL_COLUMNS, Columns
from .report import DatasetReport, SizeStats
from .validation import Findings, looks_swapped


class DatasetWarning(str):
    """A warning about a dataset, in English, with its kind and figures for other languages."""

    code: str
    values: Mapping[str, Any]

    def __new__(cls, text: str, code: str, **values: Any) -> DatasetWarning:
        """Make a warning of one of the kinds that a `code` names."""
        warning = super().__new__(cls, text)
        warning.code, warning.values = code, values
        return warning


def report_findings(
    path: Path, columns: Columns, findings: Findings, files: Sequence[tuple[str, int]] = ()
) -> DatasetReport:
    """Put what the check of a dataset's rows found into a report, with warnings about what looks wrong.

    `files` has the names and first rows of its files, where there are several.
    """
    return DatasetReport(
        path=path,
        columns=columns,
        rows=len(findings.good),
        bad_rows=int(np.count_nonzero(~findings.good)),
        bad=tuple(findings.bad),
        sampled=findings.sampled,
        control_sizes=tuple(SizeStats.of(findings.control_sizes.get(name, [])) for name in columns.controls),
        without_control=tuple(findings.without_control.get(name, 0) for name in columns.controls),
        target_sizes=SizeStats.of(findings.target_sizes),
        warnings=tuple(_warnings(columns, findings)),
        files=tuple(files),
    )


def _warnings(columns: Columns, findings: Findings) -> Iterator[str]:
    target, rows, sampled = columns.image, len(findings.good), findings.sampled
    several = len(columns.controls) > 1
    if findings.same_cells:
        yield DatasetWarning(
            f"a control and the target are the same image in {findings.same_cells} of {rows} rows"
            if several
            else f"control and target are the same image in {findings.same_cells} of {rows} rows; nothing is edited "
            "there",
            "same",
            n=findings.same_cells,
            rows=rows,
        )
    elif findings.same_pixels:
        yield DatasetWarning(
            f"{'a control and the' if several else 'control and'} target show the same in {findings.same_pixels} of "
            f"{sampled} sampled rows",
            "same",
            n=findings.same_pixels,
            rows=sampled,
        )
    swapped = [control for control in columns.controls if looks_swapped(control, target)]
    if swapped or findings.swapped_paths * 10 > sampled * 9:
        control = swapped[0] if swapped else columns.controls[0]
        yield DatasetWarning(
            f'control and target look swapped: "{control}" is used as the input image and "{target}" as the result; '
            f"check {CONTROL_COLUMNS if several else 'control_image_column'} and image_column",
            "swapped",
            control=control,
            target=target,
        )
    if findings.empty_captions:
        yield DatasetWarning(
            f"{findings.empty_captions} of {rows} captions are empty",
            "emptyCaptions",
            n=findings.empty_captions,
            rows=rows,
        )
