"""Writing files so that nothing half-written is ever seen under its final name."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RunFailed

if TYPE_CHECKING:
    pass


TEMPORARY_PREFIX = ".writing-"
"""Names of unfinished files and folders begin like this; what is left of a crash can be deleted."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was made there (a file or a folder) takes `path`'s name at the end.

    A folder must not exist yet under its final name. On an error the temporary is removed and `path` is as it was.
    `durable` makes a file survive a power cut, which takes time. Raises RunFailed when the disk refuses (full, no
    permission).
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable and temporary.is_file():
            flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise RunFailed(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there and the disk lets it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Delete what an earlier crash left half-written in `folder`."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        remove(path)


def flush_to_disk(path: Path) -> None:
    """Make the file's content survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file atomically. Raises RunFailed."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file atomically. Raises RunFailed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
