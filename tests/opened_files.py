"""Which files are opened, by whatever process and library: Linux's inotify, as the weights are read by native code."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN, IN_NONBLOCK = 0x20, 0o4000
EVENT = struct.Struct("iIII")


@contextmanager
def opened_files(*folders: Path, suffix: str = ".safetensors") -> Iterator[set[str]]:
    """Context that fills a set with the names of the files of a suffix that were opened below `folders` inside it."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(IN_NONBLOCK)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    found: set[str] = set()
    try:
        for top in folders:
            for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
                assert libc.inotify_add_watch(queue, os.fsencode(folder), IN_OPEN) >= 0, folder
        yield found
        found |= {name for name in _names(queue) if name.endswith(suffix)}
    finally:
        os.close(queue)


def _names(queue: int) -> Iterator[str]:
    while True:
        try:
            events = os.read(queue, 2**16)
        except BlockingIOError:
            return
        while events:
            length = EVENT.unpack_from(events)[3]
            yield os.fsdecode(events[EVENT.size : EVENT.size + length].rstrip(b"\0"))
            events = events[EVENT.size + length :]
