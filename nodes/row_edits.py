"""Rows of a dataset and their edits, for the page: found, read and changed in ComfyUI's input folder."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..trainer.errors import BadInput
from .folders import contained_images, file_state, find_contained_parquet, input_folder
from .row_reader import READER

if TYPE_CHECKING:
    from ..trainer.data.row_edits import RowEdits

MAX_CAPTION_CHARS = 20_000
"""Characters of a caption that the page shows; a judgement: a longer one is no caption."""
MAX_LISTED = 100_000
"""Rows that the page is told to be left out or edited; a judgement: one by one, a person edits far fewer."""
MAX_KNOWN = 64
"""Datasets whose numbers of rows are kept; a judgement."""


@dataclass(frozen=True)
class ShownDataset:
    """A dataset that the page shows: one file, or several that are read as one."""

    path: Path
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    """First row of each file."""
    rows: int
    state: str
    """Changes with the files."""

    @property
    def editable(self) -> bool:
        """True if it lies in ComfyUI's input folder, where its edits may be written."""
        return all(file.resolve().is_relative_to(input_folder().resolve()) for file in self.files)

    def root(self, images_root: str) -> Path:
        """Folder of its images. Raises BadInput outside of what the page is shown."""
        root = contained_images(self.path, images_root)
        if root is None:
            raise BadInput("images_root: is not in ComfyUI's input folder.")
        return root

    def edits(self) -> tuple[dict[int, RowEdits], str]:
        """Edits by the first row of their file, and why those of a file cannot be used."""
        from ..trainer.data.row_edits import read_edits

        found, fault = {}, ""
        for first, file in zip(self.starts, self.files, strict=True):
            try:
                found[first] = read_edits(file)
            except BadInput as error:
                fault = fault or str(error)
        return found, fault

    def by_file(self, rows: Iterable[int]) -> dict[Path, list[int]]:
        """Rows of each file, of which some are meant. Raises BadInput for one that the dataset does not have."""
        found: dict[Path, list[int]] = {}
        for row in rows:
            if not 0 <= row < self.rows:
                raise BadInput(f"{self.path.name} has rows 0 to {self.rows - 1}; read it again.")
            number = bisect_right(self.starts, row) - 1
            found.setdefault(self.files[number], []).append(row - self.starts[number])
        return found


def find_dataset(resource: str) -> ShownDataset:
    """Find the dataset of a resource in ComfyUI's folders. Raises BadInput."""
    from ..trainer.data.dataset_files import dataset_files

    path = find_contained_parquet(resource)
    files = dataset_files(path)
    state = hashlib.sha256(" ".join(file_state(file) for file in files).encode()).hexdigest()[:16]
    return _opened(path, files, state)


@lru_cache(MAX_KNOWN)
def _opened(path: Path, files: tuple[Path, ...], state: str) -> ShownDataset:
    from ..trainer.data.row_edits import count_rows

    starts, rows = [], 0
    for file in files:
        starts.append(rows)
        rows += count_rows(file)
    return ShownDataset(path, files, tuple(starts), rows, state)


def read_rows(resource: str, column: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Caption of each row, with the file's own where it is edited, and whether the row is left out.

    Raises BadInput.
    """
    dataset = find_dataset(resource)
    edits, _ = dataset.edits()
    captions = {
        first + row: text for first, part in edits.items() for row, text in part.captions.get(column, {}).items()
    }
    left_out = {first + row for first, part in edits.items() for row in part.left_out}
    found = {}
    for row in sorted(set(rows)):
        (own,) = READER.cells(dataset.path, dataset.state, [column], row) if column else ("",)
        text = own[:MAX_CAPTION_CHARS] if isinstance(own, str) else ""
        found[row] = {"row": row, "caption": text, "left_out": row in left_out}
        if row in captions:
            found[row] |= {"caption": captions[row], "own": text}
    return [found[row] for row in rows]


def edits_state(resource: str) -> dict[str, Any]:
    """Rows of a dataset and its edits, for the page: `editable` is false outside of the input folder, and `fault` says
    why edits cannot be used."""
    dataset = find_dataset(resource)
    edits, fault = dataset.edits()
    left_out = [first + row for first, part in edits.items() for row in part.left_out]
    captions: dict[str, list[int]] = {}
    for first, part in edits.items():
        for column, texts in part.captions.items():
            captions.setdefault(column, []).extend(first + row for row in sorted(texts))
    return {
        "rows": dataset.rows,
        "version": dataset.state,
        "left_out": left_out[:MAX_LISTED],
        "left_out_rows": len(left_out),
        "captions": {column: rows[:MAX_LISTED] for column, rows in captions.items()},
        "editable": dataset.editable,
        "fault": fault,
    }


def edit_rows(resource: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Change the edits of a dataset in the input folder; returns `edits_state`. Raises BadInput and RunFailed."""
    from ..trainer.data.row_edits import change_edits

    dataset = find_dataset(resource)
    if not dataset.editable:
        raise BadInput("Only rows of a parquet in ComfyUI's input folder can be edited; copy the file there.")
    if changes.get("discard") is True:
        _discard_unusable(dataset)
    else:
        for file, change in _changes(dataset, changes).items():
            change_edits(file, **change)
    return edits_state(resource)


def _discard_unusable(dataset: ShownDataset) -> None:
    """Delete the edits of files that cannot be used; those of other files stay."""
    from ..trainer.data.row_edits import discard_edits, read_edits

    for file in dataset.files:
        try:
            read_edits(file)
        except BadInput:
            discard_edits(file)


def _changes(dataset: ShownDataset, body: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Changes of `RowEdits.changed` in the page's request, by file. Raises BadInput."""
    rows = {name: body.get(name, []) for name in ("leave_out", "take_back")}
    column, captions = body.get("column", ""), body.get("captions", {})
    if (
        not all(isinstance(listed, list) and all(type(row) is int for row in listed) for listed in rows.values())
        or not isinstance(column, str)
        or not isinstance(captions, dict)
        or not all(row.isascii() and row.isdecimal() and len(row) <= 18 for row in captions)
        or (captions and not column)
    ):
        raise BadInput("The edits are not in the form that the page sends.")
    changes: dict[Path, dict[str, Any]] = {}
    for name, listed in rows.items():
        for file, found in dataset.by_file(listed).items():
            changes.setdefault(file, {})[name] = found
    for text_row, text in captions.items():
        ((file, (row,)),) = dataset.by_file([int(text_row)]).items()
        change = changes.setdefault(file, {})
        change.setdefault("captions", {})[row] = text
        change["column"] = column
    return changes
