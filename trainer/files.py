"""Atomic writing: a file or folder appears under its final name only when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RunFailed

TEMPORARY_PREFIX = ".writing-"
"""Prefix of unfinished files and folders; those left by a crash can be deleted."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Context with a temporary path beside `path`; renames the file or folder made there to `path` on exit.

    A folder must not exist yet under its final name. On an error the temporary is removed and `path` stays as it was.
    `durable` flushes a file to disk first, which is slow, so that it survives a power cut. Raises RunFailed when the
    write fails (disk full, no permission).
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
    """Delete a file or folder if it exists; errors are ignored."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Delete unfinished files and folders that a crash left in `folder`."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        remove(path)


def flush_to_disk(path: Path) -> None:
    """Flush a file's content to disk, so that it survives a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file atomically. Raises RunFailed."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file atomically. Raises RunFailed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
