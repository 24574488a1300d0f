"""Check of every row against the model, before any of its weights are loaded: sizes, aspect ratios and captions."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config.samples import DEFAULT_CONTROL_URL, SamplePrompt
from ..data.images import EncodedImage, load_control
from ..data.report import LISTED_ROWS
from ..data.resize import Size
from ..errors import BadInput, shorten
from ..events import Progress
from ..models.captions import CaptionRules
from ..threads import prefetch

if TYPE_CHECKING:
    from ..config.settings import RunSettings
    from ..data.dataset import EditDataset, EditRow
    from ..models.family import Family

READERS = 4
"""Threads that read images; a judgement, as in the check of the dataset."""

ROWS_AHEAD = 16
"""Rows that are read ahead; a judgement: they hold encoded images."""

SAME_SHAPE = 0.02
"""Difference of two aspect ratios up to which pictures count as of one shape; a judgement: that of a size rounded to
whole pixels, or to the model's grid."""


@dataclass(slots=True)
class RowFindings:
    """Results of the check."""

    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    """(column, reason) of each bad row."""
    cut: list[int] = field(default_factory=list)
    """Rows whose captions are longer than what the model reads of them."""
    longest_caption: int = 0
    """Tokens of the longest caption of a good row; 0 where all are short."""

    def notice(self, dataset: EditDataset, family: Family) -> str | None:
        """Say how many captions are cut off; None for none."""
        if not self.cut:
            return None
        report = dataset.report
        listed = [report.place(row) if report.files else str(row) for row in self.cut[:LISTED_ROWS]]
        rows = ("; " if report.files else ", ").join(listed) + (" and more" if len(self.cut) > LISTED_ROWS else "")
        captions, are = ("caption", "is") if len(self.cut) == 1 else ("captions", "are")
        return (
            f'{len(self.cut)} {captions} in column "{dataset.columns.caption}" {are} longer than the '
            f"{family.caption_length()} tokens that {family.info.title} reads, and what follows is ignored "
            f"(rows counted from 0: {rows})."
        )


class RowChecks:
    """Checks rows of a dataset for one model and settings."""

    def __init__(self, dataset: EditDataset, rules: CaptionRules, settings: RunSettings) -> None:
        self.dataset, self.family, self.settings = dataset, rules.family, settings
        self.resolution = settings.resolution or rules.family.variant.resolution
        self.captions = rules
        self.findings = RowFindings()

    def check(self) -> Generator[Progress, None, RowFindings]:
        """Check all rows. Images are opened, not decoded."""
        sizes = prefetch(self.dataset, self._sizes, ROWS_AHEAD, READERS)
        with closing(sizes) as read:
            for done, (row, found) in enumerate(read, 1):
                self._add(row, found)
                yield Progress(phase="checking", done=done, total=len(self.dataset), note="rows for the model")
        return self.findings

    def _sizes(self, row: EditRow) -> tuple[EditRow, list[Size] | tuple[str, str]]:
        """Sizes of target and controls, or (column, reason) of a bad image."""
        columns, sizes = (self.dataset.columns.image, *row.control_columns), []
        if not row.controls and self.family.info.needs_control:
            return row, (self.dataset.columns.controls[0], f"{self.family.info.title} needs a control image")
        for column, reference in zip(columns, (row.target, *row.controls), strict=True):
            try:
                sizes.append(self.dataset.picture_size(reference) or EncodedImage(self.dataset.fetch(reference)).size)
            except BadInput as error:
                return row, (column, error.reason)
        if fault := self._mask_fault(row, sizes):
            return row, fault
        target = self.family.target_size(sizes[0], self.resolution)
        resolution = self.settings.control_resolution
        final = [target, *(self.family.control_size(size, target, resolution) for size in sizes[1:])]
        for size, own, column in zip(final, sizes, columns, strict=True):
            if fault := self.family.size_fault(size):
                return row, (column, f"the image has {own.width} x {own.height} pixels: {fault}")
        return row, final

    def _mask_fault(self, row: EditRow, sizes: Sequence[Size]) -> tuple[str, str] | None:
        """Return (column, reason) of a mask that does not fit the target; `sizes` are those of target and controls."""
        target, columns = sizes[0], self.dataset.columns
        if self.settings.mask == "difference" and row.controls:
            size, column, what = sizes[1], row.control_columns[0], "the control image"
        elif row.mask is not None:
            column, what = columns.mask, "the mask"
            try:
                size = self.dataset.picture_size(row.mask) or EncodedImage(self.dataset.fetch(row.mask)).size
            except BadInput as error:
                return column, error.reason
        else:
            return None
        if abs(size.width * target.height / (size.height * target.width) - 1) <= SAME_SHAPE:
            return None
        return column, (
            f"{what} has {size.width} x {size.height} pixels and the target {target.width} x {target.height}: where "
            "the loss counts is only known for pictures of one shape"
        )

    def _add(self, row: EditRow, found: list[Size] | tuple[str, str]) -> None:
        if isinstance(found, tuple):
            self.findings.bad[row.row] = found
            return
        target, *controls = found
        if fault := self.captions.fault(row.caption, self.family.caption_room(target, controls)):
            self.findings.bad[row.row] = (self.dataset.columns.caption, fault)
            return
        tokens = self.captions.tokens(row.caption)
        length = self.family.caption_length()
        if length is not None and tokens > length:
            self.findings.cut.append(self.dataset.file_row(row.row))
        self.findings.longest_caption = max(self.findings.longest_caption, tokens)


def check_samples(
    samples: Sequence[SamplePrompt], dataset: EditDataset, rules: CaptionRules, resolution: str
) -> Iterator[str]:
    """Yield the faults of sample prompts and their control images, with the names of their fields.

    The images are fetched and decoded; the published default may be out of reach, as it has a stand-in.
    """
    family = rules.family
    square = Size(family.variant.resolution, family.variant.resolution)
    for index, sample in enumerate(samples):
        controls = len(sample.control_urls) or len(dataset.columns.controls)
        if fault := rules.fault(sample.prompt, family.caption_room(square, [square] * controls)):
            yield f"training_params.samples.{index}.prompt: {fault}"
        for url in sample.control_urls:
            if fault := _control_fault(url, dataset, family, square, resolution):
                yield f"training_params.samples.{index}.ctrl_img_url: {fault}"


def _control_fault(url: str, dataset: EditDataset, family: Family, sample: Size, resolution: str) -> str | None:
    """Say why a control image cannot be used for a sample of this size; None if it can."""
    if url == DEFAULT_CONTROL_URL:
        return None
    try:
        image = load_control(url, dataset.folder, dataset.downloads)
    except BadInput as error:
        return str(error)
    if fault := family.size_fault(family.control_size(Size(*image.size), sample, resolution)):
        return f"{shorten(url)} has {image.width} x {image.height} pixels: {fault}"
    return None
