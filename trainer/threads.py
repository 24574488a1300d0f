"""Threads that prepare the next items and store the last ones while the current one is processed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")


R = TypeVar("R")


PATIENCE = 0.5
"""Seconds that closing waits for items in progress. A judgement: enough for a picture or a file; a server that does not
answer, or a decoder with a hostile file, may take half a minute."""

IDLE = 0.5
"""Seconds of waiting for an item after which `prefetch_or_idle` says so. A judgement: a person may have pressed
Cancel."""


def prefetch(
    items: Iterable[T], prepare: Callable[[T], R], ahead: int = 2, threads: int = 1
) -> Generator[R, None, None]:
    """Yield `prepare(item)` for every item, in order, computed up to `ahead` items early in `threads` threads.

    An error is raised at its item. Closing the generator ends each thread after its current item, and waits PATIENCE
    for that.
    """
    with closing(prefetch_or_idle(items, prepare, ahead, threads, idle=None)) as futures:
        for future in futures:
            if future is not None:
                yield future.result()


def prefetch_or_idle(
    items: Iterable[T], prepare: Callable[[T], R], ahead: int, threads: int, idle: float | None = IDLE
) -> Generator[Future[R] | None, None, None]:
    """Yield the results of `prefetch` as finished futures, and None for every `idle` seconds that one is not ready."""
    executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="prefetch")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(prepare, item))
            if len(waiting) > ahead:
                yield from _finished(waiting[0], idle)
                waiting.popleft()
        while waiting:
            yield from _finished(waiting[0], idle)
            waiting.popleft()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        running = [future for future in waiting if not future.cancelled()]
        executor.shutdown(wait=not wait(running, PATIENCE).not_done)


def _finished(future: Future[R], idle: float | None) -> Iterator[Future[R] | None]:
    while wait([future], idle).not_done:
        yield None
    yield future


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
