"""Preparing the next items, and storing the last, in threads while the current one is worked on."""

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
    """`prepare(item)` for every item, in order, computed up to `ahead` items early. Errors surface at their item.

    Closing it ends the threads, each after the item that it is at.
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
    """Threads that do what they are given, begun in order, while their owner goes on; to be used in a `with`, at whose
    end all that was given is done and the threads are gone."""

    def __init__(self, most: int = 4, threads: int = 1, at_start: Callable[[], object] | None = None) -> None:
        """`most` bounds what is given and not done yet; each thread calls `at_start` first."""
        self._most = most
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="behind", initializer=at_start)
        self._undone: deque[Future[Any]] = deque()

    def __enter__(self) -> BackgroundWork:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have it done. Raises what earlier work raised, and waits where too much is undone."""
        self._undone.append(self._executor.submit(work, *arguments))
        while len(self._undone) > self._most:
            self._undone.popleft().result()

    def finish(self) -> None:
        """Wait until all is done. Raises what it raised."""
        while self._undone:
            self._undone.popleft().result()
