"""Deletes a run folder: to the system's bin where there is one, else for good."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from ..trainer.errors import BadInput
from ..trainer.files import temporary_beside
from ..trainer.training.run_lock import lock_run
from .saved_runs import find_run

_DELETE, _TO_BIN = 3, 0x40 | 0x10 | 0x4 | 0x400
"""FO_DELETE, and FOF_ALLOWUNDO, FOF_NOCONFIRMATION, FOF_SILENT and FOF_NOERRORUI, of Windows' shellapi.h."""
_FIXED_DISK = 3
"""DRIVE_FIXED of Windows' fileapi.h. From other disks, FOF_ALLOWUNDO may delete for good without a word."""


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
    if sys.platform == "win32":
        return _to_windows_bin(folder)
    with suppress(OSError):  # such as a bin on another disk
        return _to_mac_bin(folder) if sys.platform == "darwin" else _to_desktop_bin(folder)
    return False


def _to_windows_bin(folder: Path) -> bool:
    windows = getattr(ctypes, "windll")  # noqa: B009 - exists on Windows alone
    if windows.kernel32.GetDriveTypeW(f"{folder.absolute().drive}\\") != _FIXED_DISK:
        return False

    class Operation(ctypes.Structure):
        _fields_ = (
            ("hwnd", ctypes.c_void_p),
            ("wFunc", ctypes.c_uint),
            ("pFrom", ctypes.c_wchar_p),
            ("pTo", ctypes.c_wchar_p),
            ("fFlags", ctypes.c_ushort),
            ("fAnyOperationsAborted", ctypes.c_int),
            ("hNameMappings", ctypes.c_void_p),
            ("lpszProgressTitle", ctypes.c_wchar_p),
        )

    # The path is the first of a list, which a second zero ends.
    operation = Operation(wFunc=_DELETE, pFrom=f"{folder.absolute()}\0", fFlags=_TO_BIN)
    return windows.shell32.SHFileOperationW(ctypes.byref(operation)) == 0 and not folder.exists()


def _to_mac_bin(folder: Path) -> bool:
    bin_folder = Path.home() / ".Trash"
    if not bin_folder.is_dir():
        return False
    folder.rename(bin_folder / f"{folder.name} {time.time_ns()}")
    return True


def _to_desktop_bin(folder: Path) -> bool:
    """Follow the freedesktop.org trash specification, version 1.0. A machine without a desktop has no such folder."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    bin_folder = Path(home) / "Trash"
    files, infos = bin_folder / "files", bin_folder / "info"
    if not (files.is_dir() and infos.is_dir()):
        return False
    name = f"{folder.name} {time.time_ns()}"
    info = infos / f"{name}.trashinfo"
    when = time.strftime("%Y-%m-%dT%H:%M:%S")
    info.write_text(f"[Trash Info]\nPath={quote(str(folder.absolute()))}\nDeletionDate={when}\n", encoding="utf-8")
    try:
        folder.rename(files / name)
    except OSError:
        info.unlink()
        raise
    return True
