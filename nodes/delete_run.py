"""Deletes a run folder: to the system's bin where there is one, else for good."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from ..trainer.errors import BadInput
from ..trainer.files import temporary_beside
from ..trainer.training.run_lock import lock_run
from .saved_runs import find_run

_FIXED_DISK = 3
"""DRIVE_FIXED of Windows' fileapi.h. Of other disks Windows may delete for good what is sent to its bin."""


def delete_run(name: str, running: set[str]) -> bool:
    """Delete a run's folder; files in ComfyUI's model folders stay. True if it is in the system's bin.

    Raises BadInput for what is not a run, for one in progress, here or in another process, and when it cannot be
    deleted.
    """
    run = find_run(name)
    if not (run.path / "run.json").is_file():
        raise BadInput(f'There is no run "{name}".')
    if name in running:
        raise BadInput(f'The run "{name}" is in progress; stop it first.')
    try:
        with lock_run(run.path):
            # Windows moves no folder with an open file: its lock has to be released first, and another process that
            # takes it meanwhile keeps the folder where it is.
            if sys.platform != "win32":
                return _delete(run.path)
        return _delete(run.path)
    except OSError as error:
        raise BadInput(f'The run "{name}" cannot be deleted: {error.strerror or error}.') from None


def _delete(folder: Path) -> bool:
    """Move a folder to the bin, or delete it for good where no bin takes it. True if it is in the bin."""
    if _move_to_bin(folder):
        return True
    # All or nothing: a folder of which a file is in use cannot be renamed on Windows, and nothing runs in the new one.
    doomed = temporary_beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)
    return False


def _move_to_bin(folder: Path) -> bool:
    """Move a folder to the bin; False where there is none that takes it."""
    from send2trash import send2trash

    if not _has_bin(folder):
        return False
    try:
        send2trash(folder)
    except OSError:  # such as a disk that has no bin
        return False
    return not folder.exists()


def _has_bin(folder: Path) -> bool:
    """Tell whether there is a bin that a person sees; send2trash would make one on a machine without a desktop."""
    if sys.platform == "win32":
        drive = f"{folder.absolute().drive}\\"
        return bool(ctypes.windll.kernel32.GetDriveTypeW(drive) == _FIXED_DISK)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return sys.platform == "darwin" or (Path(data) / "Trash" / "files").is_dir()
