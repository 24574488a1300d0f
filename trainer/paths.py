"""Paths that people type and requests name: looking there without a surprise from the operating system."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .errors import BadInput, shorten

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
