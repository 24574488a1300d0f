"""The lock of a run folder: one process at a time trains in it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BadInput, DamagedFile, RunFailed
from ..files import read_json, remove, write_json

LOCK = "run.lock"
"""The locked file. It stays in the folder: deleting it could let two processes lock two files of this name."""

HOLDER = "holder.json"
"""Says which process holds the lock. Not the locked file itself, which Windows lets nobody else read."""

ATTEMPTS = 5
"""Tries where another process is just starting or ending; a judgement: either takes milliseconds."""


@contextmanager
def lock_run(folder: Path) -> Iterator[str | None]:
    """Context that holds the lock of a run folder, which is created first.

    The operating system releases the lock of a process that ends, however it ends. A folder that no run has begun in is
    removed on exit. Yields a notice where the disk has no locks, else None. Raises BadInput when another process holds
    the lock, or when the folder cannot be created.
    """
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    notice = None
    try:
        _acquire(lock, folder)
    except Timeout:
        raise BadInput(
            f"{folder} is in use: {_holder(folder)} is training in it. Wait for its end, stop it, or name another "
            "folder for this run."
        ) from None
    except (OSError, NotImplementedError) as error:
        notice = f"{folder} cannot be locked ({error}). Start no second run in it while this one trains."
    try:
        if notice is None:
            with suppress(RunFailed):
                write_json(folder / HOLDER, _this_process())
        yield notice
    finally:
        if notice is None:
            remove(folder / HOLDER)
        if not (folder / "checkpoints").exists():
            remove(folder / LOCK)
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # only a folder that holds nothing


def _acquire(lock: FileLock, folder: Path) -> None:
    """Create the folder and lock it. Raises BadInput, and Timeout, OSError and NotImplementedError of the lock."""
    for attempt in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"Cannot create the run folder {folder}: {error.strerror or error}.") from None
        try:
            lock.acquire()
            return
        except FileNotFoundError:  # another process that could not start has just removed the folder
            if attempt == ATTEMPTS - 1:
                raise


def _this_process() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _holder(folder: Path) -> str:
    """Name the process that holds the lock, as well as it is known."""
    holder = None
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, DamagedFile):
            holder = read_json(folder / HOLDER)
            break
        time.sleep(0.1)  # it has the lock, and writes this next
    if not isinstance(holder, dict) or not all(isinstance(holder.get(name), str) for name in ("host", "since")):
        return "another process"
    return f"process {holder.get('pid')} on {holder['host']:.80} (since {holder['since']:.80})"
