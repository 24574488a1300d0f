"""Paths that people type and requests name: looking there without a surprise from the operating system."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .errors import BadInput, shorten

MAX_ENTRIES = 100_000
"""Files and folders that a search looks at: about a second on a local disk. A judgement."""

PathKind = Literal["file", "folder", "other", "missing"]


def typed_path(text: str) -> Path:
    """Return a path as typed, with the home folder in place of `~`. Raises BadInput when there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f'"{shorten(text)}" is not a path here: {error}') from None


def path_kind(path: Path) -> PathKind:
    """Tell what a path leads to, through links; "other" is a device, a pipe or a socket.

    Raises BadInput when the system cannot look there: a name is too long, or a folder may not be entered.
    """
    try:
        if path.is_file():
            return "file"
        if path.is_dir():
            return "folder"
        return "other" if path.exists() else "missing"
    except OSError as error:
        raise BadInput(f'"{shorten(str(path))}" cannot be read: {error.strerror or error}.') from None


def typed_file(text: str, field: str) -> Path:
    """Return the path of the file that a setting names, as `typed_path` does. Raises BadInput, which names the setting,
    when there is none."""
    try:
        path = typed_path(text)
        kind = path_kind(path)
    except BadInput as error:
        raise BadInput(f"{field}: {error}") from None
    if kind != "file":
        raise BadInput(f"{field}: there is no file {path}.")
    return path


def find_files(folder: Path, suffix: str) -> Iterator[Path]:
    """Files whose names end with `suffix` in a folder and in those below it, the nearest first, among the first
    MAX_ENTRIES entries. Links to folders are not followed, and folders that cannot be read are left out."""
    waiting, left = deque([folder]), MAX_ENTRIES
    while waiting and left > 0:
        try:
            with os.scandir(waiting.popleft()) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.name.endswith(suffix):
                        yield Path(entry.path)
        except OSError:
            continue
