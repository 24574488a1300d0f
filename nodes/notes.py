"""Notes that stand in a node: what is wrong with its inputs and its results, and what it has written.

A note is a dict for the page: `level`, "error", "warning" or "info", and either `text` or a `code` with `values`, which
the page puts into the person's language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server import PromptServer

from ..trainer.config.columns import COLUMN_FIELDS
from ..trainer.errors import BadInput, printable
from .folders import contained_images, contained_path, find_contained_parquet, input_folder, is_outside
from .widgets import CONTROL_COLUMN_FIELDS, OPTIONAL_COLUMNS

if TYPE_CHECKING:
    from ..trainer.data.report import BadRow, DatasetReport

Note = dict[str, Any]

EVENT = "edit_trainer.notes"
OUTPUT = "edit_trainer_notes"
"""Key of a node's notes in its `ui` output."""
FIRST_ROWS = 3
"""Rows whose image files are looked for while inputs are chosen: those that the page shows."""
SHOWN_FAULTS = 3
"""Bad rows shown in a node; a judgement: enough to see what is wrong. The report lists more."""
REASONS = {"is null": "whyNull", "is empty text": "whyEmpty", "is empty (0 bytes)": "whyEmpty"}
"""Frequent reasons of bad rows that the page translates."""


def note(level: str, code: str, **values: Any) -> Note:
    """Make a note of one of the page's texts."""
    return {"level": level, "code": code, "values": values}


def text_note(level: str, text: str) -> Note:
    """Make a note whose text is shown as it is."""
    return {"level": level, "text": printable(text)}


def send_notes(node_id: str, notes: list[Note]) -> None:
    """Show notes in a node that fails, and so has no output."""
    PromptServer.instance.send_sync(EVENT, {"node_id": node_id, "notes": notes})


def report_notes(report: DatasetReport) -> list[Note]:
    """Notes on a dataset that can be used: its warnings, and the rows that are left out."""
    from ..trainer.data.findings import DatasetWarning

    notes = [
        note("warning", warning.code, **warning.values)
        if isinstance(warning, DatasetWarning)
        else text_note("warning", warning)
        for warning in report.warnings
    ]
    return [*notes, *([_rows_note("warning", "rowsLeftOut", report)] if report.bad_rows else [])]


def bad_rows_note(report: DatasetReport) -> Note:
    """Note on a dataset that cannot be used because of its rows: one cause where there is one."""
    if report.missing_files:
        path, folder = report.missing_files
        return note("error", "filesMissing", path=path, folder=folder)
    return _rows_note("error", "badRows" if report.good_rows else "allRowsBad", report)


def input_notes(resource: str, columns: Mapping[str, str], images_root: str) -> list[Note]:
    """Notes on a dataset node's inputs before anything runs; `columns` holds the column fields that are known.

    Looks only into ComfyUI's folders, and says nothing about what is outside of them.
    """
    from ..trainer.data.hub_files import NotDownloaded

    if not resource.strip():
        return []
    try:
        path = find_contained_parquet(resource)
    except NotDownloaded:
        return [note("warning", "notDownloaded", resource=resource)]
    except BadInput as error:
        if is_outside(resource):
            return [note("warning", "parquetOutside", resource=resource)]
        if _names_folder(resource):
            return [text_note("error", str(error))]
        return [note("error", "parquetMissing", resource=resource)]
    try:
        notes = list(_column_notes(columns, path))
        return notes or [*_swapped(columns), *_image_notes(columns, path, images_root)]
    except BadInput as error:
        return [text_note("error", str(error))]


def _names_folder(resource: str) -> bool:
    """Tell whether a resource is a folder in the input folder, of which an error says more than that it is missing."""
    place = contained_path(input_folder(), resource.strip())
    return place is not None and place.is_dir()


def request_notes(text: bytes) -> list[Note]:
    """Notes on the JSON of a fine-tune request before anything runs: its faults, then those of its dataset."""
    from ..trainer.config.request import parse_request

    try:
        request = parse_request(text)
    except BadInput as error:
        return [text_note("error", str(error))]
    return input_notes(request.resource, request.training_params.columns.to_fields(), "")


def _rows_note(level: str, code: str, report: DatasetReport) -> Note:
    faults = [_fault(fault, *report.file_and_row(fault.row)) for fault in report.bad[:SHOWN_FAULTS]]
    return note(level, code, n=report.bad_rows, rows=report.rows, faults=faults)


def _fault(fault: BadRow, file: str, row: int) -> dict[str, Any]:
    """Row and column of a fault, the file where there are several, and its reason as a note has it."""
    where = {"row": row, "column": printable(fault.column)} | ({"file": printable(file)} if file else {})
    if fault.missing_file:
        path, folder = fault.missing_file
        return where | {"code": "whyMissing", "values": {"path": path, "folder": folder}}
    if fault.why in REASONS:
        return where | {"code": REASONS[fault.why], "values": {}}
    return where | {"text": printable(fault.why)}


def _column_notes(columns: Mapping[str, str], path: Path) -> Iterator[Note]:
    from ..trainer.data.parquet import LISTED_COLUMNS, column_faults, parquet_columns

    names = list(parquet_columns(path))
    for field, column in columns.items():
        if not column and field in OPTIONAL_COLUMNS:
            continue
        if not column:
            yield note("error", "columnEmpty", field=field)
        elif column not in names:
            shown = [printable(name) for name in names[:LISTED_COLUMNS]]
            yield note("error", "columnMissing", field=field, column=column, columns=shown)
    known = {field: column for field, column in columns.items() if column in names}
    for fault in column_faults(known, path):
        yield text_note("error", fault)


def _swapped(columns: Mapping[str, str]) -> Iterator[Note]:
    from ..trainer.data.validation import looks_swapped

    target = columns.get("image_column", "")
    for field in CONTROL_COLUMN_FIELDS:
        if looks_swapped(control := columns.get(field, ""), target):
            yield note("warning", "swapped", control=control, target=target)
            return


def _image_notes(columns: Mapping[str, str], path: Path, images_root: str) -> Iterator[Note]:
    """Look for the image files of the first rows."""
    from ..trainer.data.image_refs import image_ref, is_absent
    from ..trainer.data.report import BadRow
    from ..trainer.data.row_blocks import RowBlocks

    if is_outside(images_root):
        yield note("warning", "imagesOutside", folder=images_root)
        return
    root = contained_images(path, images_root)
    if root is None or not root.is_dir():
        yield note("error", "imagesRootMissing", folder=images_root)
        return
    fields = (*CONTROL_COLUMN_FIELDS, "image_column")
    names = list(dict.fromkeys(name for field in fields if (name := columns.get(field))))
    several = len(names) > len(COLUMN_FIELDS[1:])
    blocks = RowBlocks(path, names)
    faults = []
    try:
        cells = blocks.block(0).columns if names and blocks.rows else ()
        for name, column in zip(blocks.columns, cells, strict=False):
            for row in range(min(FIRST_ROWS, len(column))):
                if several and is_absent(column[row]):
                    continue
                reference = image_ref(column[row])
                if reference.kind != "path":
                    return
                faults.append(BadRow(row, name, _missing(str(reference.value), root)))
    except (BadInput, UnicodeDecodeError):
        return  # The check of all rows says more.
    finally:
        blocks.close()
    missing = [fault.missing_file for fault in faults]
    if missing and missing[0] and all(missing):
        yield note("error", "filesMissing", path=missing[0][0], folder=missing[0][1])


def _missing(path: str, root: Path) -> str:
    from ..trainer.data.image_refs import local_file

    try:
        local_file(path, root)
    except BadInput as error:
        return error.reason
    return ""
