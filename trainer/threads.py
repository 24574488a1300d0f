"""Threads that prepare the next items and store the last ones while the current one is processed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


R = TypeVar("R")


def prefetch(
    items: Iterable[T], prepare: Callable[[T], R], ahead: int = 2, threads: int = 1
) -> Generator[R, None, None]:
    """Yield `prepare(item)` for every item, in order, computed up to `ahead` items early in `threads` threads.

    An error is raised at its item. Closing the generator ends each thread after its current item.
    """
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="prefetch") as executor:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(executor.submit(prepare, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class BackgroundWork:
    """Thread pool that starts jobs in the order they were added and bounds their number.

    A context manager: on exit all jobs are done and the threads have ended.
    """

    def __init__(self, max_pending: int = 4, threads: int = 1, at_start: Callable[[], object] | None = None) -> None:
        """`max_pending` bounds the unfinished jobs; each thread calls `at_start` first."""
        self._max_pending = max_pending
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="behind", initializer=at_start)
        self._pending: deque[Future[Any]] = deque()

    def __enter__(self) -> BackgroundWork:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Queue a job; waits while `max_pending` jobs are unfinished. Raises the error of an earlier job."""
        self._pending.append(self._executor.submit(work, *arguments))
        while len(self._pending) > self._max_pending:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait for all jobs. Raises the first job's error."""
        while self._pending:
            self._pending.popleft().result()
