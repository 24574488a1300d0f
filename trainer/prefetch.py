"""Preparing the next items, and storing the last, in threads while the current one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(
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


def in_turns(
    items: Iterable[T], prepare: Callable[[T], R], ahead: int = 2, threads: int = 1
) -> Generator[R, None, None]:
    """The same, but nothing is computed while an item is worked on: `ahead` items are, whenever there are none left."""
    iterator = iter(items)
    while block := list(islice(iterator, ahead)):
        yield from list(prefetched(block, prepare, ahead, threads))


class WorkBehind:
    """A thread that does what it is given, in order, while its owner goes on; to be used in a `with`, at whose end all
    that was given is done and the thread is gone."""

    def __init__(self, most: int = 4) -> None:
        """`most` bounds what is given and not done yet."""
        self._most = most
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind")
        self._undone: deque[Future[Any]] = deque()

    def __enter__(self) -> WorkBehind:
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
