"""Preparing the next items in threads while the current one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
