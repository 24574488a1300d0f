"""Rows that a person has left out of a parquet and captions that they have edited, kept in a file beside it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BadInput, DamagedFile, RunFailed
from ..files import MAX_JSON_BYTES, file_checksum, read_record, remove, write_record
from .arrow_rows import is_arrow, read_index
from .cell_checks import MAX_TEXT_BYTES
from .digests import SETTLED_NS
from .parquet import open_parquet

SUFFIX = ".edits.json"
"""Follows the parquet's name in that of the file with its edits."""

MAX_KNOWN_FILES = 64
"""Parquets whose checksum is kept in memory; a judgement."""

LOCK_SECONDS = 60.0
"""Seconds that another program may take to change edits; a judgement: it may read a parquet of many gigabytes."""

_LOCK = threading.Lock()
"""Held while edits are read and written again, so that two changes at once are both kept."""


@dataclass(frozen=True, slots=True)
class RowEdits:
    """Edits of one parquet. Rows are those of the file, counted from 0."""

    left_out: tuple[int, ...] = ()
    """Rows that are not trained on, in ascending order."""
    captions: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Edited captions by column, then by row."""

    def __bool__(self) -> bool:
        return bool(self.left_out) or any(self.captions.values())

    def changed(
        self,
        leave_out: Iterable[int] = (),
        take_back: Iterable[int] = (),
        column: str = "",
        captions: Mapping[int, str | None] | None = None,
    ) -> RowEdits:
        """Return the edits with more rows left out, others taken back, and captions of one column edited; None in place
        of a caption is the parquet's own."""
        rows = sorted({*self.left_out, *leave_out} - {*take_back})
        edited = {**self.captions.get(column, {}), **(captions or {})}
        kept = {row: text for row, text in edited.items() if text is not None}
        every = {**self.captions, column: kept}
        return RowEdits(tuple(rows), {name: texts for name, texts in every.items() if texts})


def edits_file(parquet: Path) -> Path:
    """Path of the file with a parquet's edits."""
    return parquet.with_name(parquet.name + SUFFIX)


def read_edits(parquet: Path) -> RowEdits:
    """Read the edits of a parquet; none where there is no such file.

    Raises BadInput for a file that is damaged, of a later release, or made for other rows than the parquet has now.
    """
    path = edits_file(parquet)
    try:
        record = read_record(path)
    except FileNotFoundError:
        return RowEdits()
    except DamagedFile as error:
        raise _damaged(path, str(error)) from None
    except BadInput:
        raise BadInput(
            f"{path} was written by a later version of the trainer. Use that version, or delete the file to train on "
            "all rows as the parquet has them."
        ) from None
    rows, content = _identity(parquet)
    if type(record.get("rows")) is int and isinstance(record.get("content"), str):
        if (record["rows"], record["content"]) != (rows, content):
            raise BadInput(
                f"{parquet} was written again ({rows} rows now, {record['rows']} then) since rows were left out or "
                f"captions edited in it, so these edits may mean other rows now. Delete {path} and make them again."
            )
    else:
        raise _damaged(path, "does not say for which rows it was made")
    return RowEdits(_checked_rows(path, record.get("left_out"), rows), _checked_captions(path, record, rows))


def write_edits(parquet: Path, edits: RowEdits) -> None:
    """Write or replace a parquet's edits; without any, their file is deleted. Raises BadInput and RunFailed."""
    path = edits_file(parquet)
    if not edits:
        remove(path)
        return
    rows, content = _identity(parquet)
    captions = {column: {str(row): text for row, text in texts.items()} for column, texts in edits.captions.items()}
    record = {"rows": rows, "content": content, "left_out": list(edits.left_out), "captions": captions}
    if len(json.dumps(record, indent=2, ensure_ascii=False).encode()) > MAX_JSON_BYTES - 1024:
        raise BadInput(
            f"{path} would be larger than {MAX_JSON_BYTES >> 20} MB. Write a parquet without the rows instead."
        )
    write_record(path, record)


def change_edits(parquet: Path, **changes: Any) -> RowEdits:
    """Change a parquet's edits on disk, as `RowEdits.changed` does, and return them.

    Raises BadInput for rows that it does not have, captions that are too long, and what `read_edits` refuses.
    """
    with _locked(parquet):
        edits = read_edits(parquet).changed(**changes)
        rows, _ = _identity(parquet)
        every = [*edits.left_out, *(row for texts in edits.captions.values() for row in texts)]
        if any(not 0 <= row < rows for row in every):
            raise BadInput(f"{parquet.name} has rows 0 to {rows - 1}; read it again.")
        if any(fault := _text_fault(text) for texts in edits.captions.values() for text in texts.values()):
            raise BadInput(f"The caption {fault}.")
        write_edits(parquet, edits)
        return edits


@contextmanager
def _locked(parquet: Path) -> Iterator[None]:
    """Context in which no other thread or program on this machine changes a parquet's edits. The lock's file is in the
    temporary folder, not among the data; where none can be made there, threads alone take turns."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(parquet))).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"edit_trainer-{name}.lock", timeout=LOCK_SECONDS)
    with _LOCK:
        try:
            lock.acquire()
        except Timeout:
            raise RunFailed(f"{edits_file(parquet)} is in use: another program changes it. Try again.") from None
        except OSError:
            pass
        try:
            yield
        finally:
            lock.release()


@contextmanager
def edits_kept(parquet: Path) -> Iterator[None]:
    """Context in which a parquet is replaced by one with the same rows in their places, and more: its edits stay.

    Edits that cannot be used are left as they are. Raises RunFailed where they cannot be written.
    """
    with _locked(parquet):
        try:
            edits = read_edits(parquet)
        except BadInput:
            edits = RowEdits()
        yield
        if edits:
            write_edits(parquet, edits)


def discard_edits(parquet: Path) -> None:
    """Delete a parquet's edits, whatever is in their file."""
    with _locked(parquet):
        remove(edits_file(parquet))


def count_rows(file: Path) -> int:
    """Number of rows of one file of a dataset. Raises BadInput when it is not readable."""
    if is_arrow(file):
        return sum(batch.rows for batch in read_index(file).batches)
    with open_parquet(file) as parquet:
        return parquet.metadata.num_rows


def _identity(parquet: Path) -> tuple[int, str]:
    """Number of rows of a parquet, and size and checksum of the file: the footer of one whose rows were only put into
    another order may be the same. The checksum takes about a second for each gigabyte, once for a file that rests."""
    rows = count_rows(parquet)
    try:
        state = parquet.stat()
        key = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_NS
        content = _content(parquet, key) if settled else file_checksum(parquet)
    except OSError as error:
        raise BadInput(f"{parquet} cannot be read: {error.strerror or error}.") from None
    return rows, f"{state.st_size}-{content}"


@lru_cache(MAX_KNOWN_FILES)
def _content(parquet: Path, _state: tuple[int, ...]) -> str:
    return file_checksum(parquet)


def _checked_rows(path: Path, found: Any, rows: int) -> tuple[int, ...]:
    if not isinstance(found, list) or any(type(row) is not int or not 0 <= row < rows for row in found):
        raise _damaged(path, "names left-out rows that the parquet does not have")
    return tuple(sorted(set(found)))


def _checked_captions(path: Path, record: Mapping[str, Any], rows: int) -> dict[str, dict[int, str]]:
    columns = record.get("captions")
    if not isinstance(columns, dict) or not all(isinstance(texts, dict) for texts in columns.values()):
        raise _damaged(path, "has no captions by column and row")
    for texts in columns.values():
        for row, text in texts.items():
            if not row.isascii() or not row.isdecimal() or len(row) > 18 or int(row) >= rows:
                raise _damaged(path, "has captions of rows that the parquet does not have")
            if fault := _text_fault(text):
                raise _damaged(path, f"has a caption for row {row} that {fault}")
    return {column: {int(row): text for row, text in texts.items()} for column, texts in columns.items()}


def _text_fault(text: Any) -> str:
    """Say why a text cannot be a caption; empty where it can."""
    if not isinstance(text, str):
        return "is not text"
    try:
        return f"is longer than {MAX_TEXT_BYTES:,} bytes" if len(text.encode()) > MAX_TEXT_BYTES else ""
    except UnicodeEncodeError:
        return "is not valid Unicode"


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(
        f"{path} {why}. Restore it, or delete it to train on all rows as the parquet has them: it says which rows are "
        "left out and which captions are edited."
    )
