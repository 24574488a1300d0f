"""The peak of a test's memory."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import psutil


@contextmanager
def peak_memory() -> Generator[list[int]]:
    """Yields a list of one number: the bytes by which the process has grown at its peak."""
    process = psutil.Process()
    start, peak, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
