"""State of a file that is read in parts: another one may have its name by then."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RunFailed

FileState = tuple[int, int] | None
"""Size and modification time in nanoseconds; None for a file that is not there."""


def file_state(path: Path) -> FileState:
    """Return the state of a file."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def check_not_replaced(path: Path, state: FileState) -> None:
    """Raise RunFailed for a file that is no longer in the state that it was in."""
    if state != file_state(path):
        raise RunFailed(f"{path} was replaced while it was read. Start again; the new file is taken then.")
