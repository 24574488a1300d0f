"""Models of torch's caching allocator, by which logged memory events are replayed.

Native CUDACachingAllocator (c10/cuda/CUDACachingAllocator.cpp): best fit in a pool of small and one of large blocks,
which are split and merged in segments of 2 MiB, 20 MiB or a multiple of 2 MiB; or, with expandable segments, in one
segment a pool that grows by pages of 2 or 20 MiB.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from .log import MemoryEvent

MIB = 2**20
UNIT = 512
"""Bytes that every size is rounded up to (kMinBlockSize)."""
SMALL = MIB
"""Largest size of the small pool (kSmallSize)."""
SMALL_SEGMENT = 2 * MIB
"""kSmallBuffer; also the granularity of large segments (kRoundLarge)."""
LARGE_SEGMENT = 20 * MIB
"""kLargeBuffer: segment of sizes below `MIN_OWN`."""
MIN_OWN = 10 * MIB
"""kMinLargeAlloc: sizes from here on get a segment of their own size."""


@dataclass(eq=False, slots=True)
class _Block:
    segment: int
    offset: int
    size: int
    small: bool
    free: bool = False
    unmapped: int = 0
    """Bytes of the pages at its end that were given back."""
    before: _Block | None = field(default=None, repr=False)
    after: _Block | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[int, int, int]:
        return self.size, self.segment, self.offset


class Allocator:
    """The allocator's state. `limit`: bytes that the card gives; None for no limit."""

    smallest_rest = SMALL
    """Least bytes left over of a large block that are cut off it."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.allocated = self.reserved = self.peak_reserved = 0
        self.retries = self.out_of_memory = 0
        self._pools: dict[bool, list[_Block]] = {True: [], False: []}
        self._live: dict[int, _Block] = {}
        self._segments = 0

    def allocate(self, number: int, bytes: int) -> None:
        """Allocate; beyond the limit unused segments are released first, then `out_of_memory` is counted."""
        size = max(UNIT, -(-bytes // UNIT) * UNIT)
        small = size <= SMALL
        block = self._best_fit(small, size) or self._segment(small, size)
        if block is None:
            self.retries += 1
            self.release()
            block = self._segment(small, size)
        if block is None:
            self.out_of_memory += 1
            limit, self.limit = self.limit, None
            block = self._segment(small, size)
            self.limit = limit
            assert block is not None
        self._split(block, size)
        block.free = False
        self._live[number] = block
        self.allocated += block.size

    def free(self, number: int) -> None:
        """Free an allocation and merge its block with free neighbours."""
        block = self._live.pop(number, None)
        if block is None:
            return
        self.allocated -= block.size
        block.free = True
        if block.before is not None and block.before.free:
            self._take(block.before)
            block = self._merge(block.before, block)
        if block.after is not None and block.after.free:
            self._take(block.after)
            block = self._merge(block, block.after)
        self._put(block)

    def _best_fit(self, small: bool, size: int) -> _Block | None:
        pool = self._pools[small]
        index = bisect.bisect_left(pool, (size, -1, -1), key=lambda block: block.key)
        return pool.pop(index) if index < len(pool) else None

    def _segment(self, small: bool, size: int) -> _Block | None:
        if small:
            size = SMALL_SEGMENT
        else:
            size = LARGE_SEGMENT if size < MIN_OWN else -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        if self.limit is not None and self.reserved + size > self.limit:
            return None
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._segments += 1
        return _Block(self._segments, 0, size, small)

    def _split(self, block: _Block, size: int) -> None:
        """Cut what is left over off a block that was taken from its pool."""
        left = block.size - size
        if left < UNIT if block.small else left <= self.smallest_rest:
            return
        rest = _Block(block.segment, block.offset + size, left, block.small, True, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        self._put(rest)

    def release(self) -> None:
        """Give unused segments back, as torch.cuda.empty_cache does."""
        for small, pool in self._pools.items():
            whole = [block for block in pool if block.before is None and block.after is None]
            self.reserved -= sum(block.size for block in whole)
            self._pools[small] = [block for block in pool if not (block.before is None and block.after is None)]

    def _put(self, block: _Block) -> None:
        bisect.insort(self._pools[block.small], block, key=lambda block: block.key)

    def _take(self, block: _Block) -> None:
        pool = self._pools[block.small]
        assert pool.pop(bisect.bisect_left(pool, block.key, key=lambda block: block.key)) is block

    def _merge(self, first: _Block, second: _Block) -> _Block:
        first.size, first.after, first.free = first.size + second.size, second.after, True
        if second.after is not None:
            second.after.before = first
        return first


class ExpandableAllocator(Allocator):
    """The allocator with expandable segments on a card that never gets full, so that pages go back only on demand."""

    smallest_rest = UNIT - 1

    def __init__(self) -> None:
        super().__init__()
        self._tails: dict[bool, _Block | None] = {True: None, False: None}
        """Last block of each segment."""

    def allocate(self, number: int, bytes: int) -> None:
        """Allocate, and map the pages that had been given back."""
        super().allocate(number, bytes)
        block = self._live[number]
        self.reserved += block.unmapped
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        block.unmapped = 0

    def release(self) -> None:
        """Give the pages back that lie within free blocks."""
        for small, pool in self._pools.items():
            page = SMALL_SEGMENT if small else LARGE_SEGMENT
            for block in pool:
                pages = (block.offset + block.size) // page - -(-block.offset // page)
                unmapped = max(block.unmapped, pages * page)
                self.reserved -= unmapped - block.unmapped
                block.unmapped = unmapped

    def _best_fit(self, small: bool, size: int) -> _Block | None:
        """Find the best fit; the tail can grow, and is taken last."""
        pool = self._pools[small]
        index = bisect.bisect_left(pool, (size, -1, -1), key=lambda block: block.key)
        if index < len(pool) and pool[index] is self._tails[small]:
            index += 1
        return pool.pop(index) if index < len(pool) else None

    def _segment(self, small: bool, size: int) -> _Block:
        tail, page = self._tails[small], SMALL_SEGMENT if small else LARGE_SEGMENT
        end = tail.offset + tail.size if tail is not None else 0
        if tail is not None and tail.free:
            self._take(tail)
            block = tail
        else:
            block = _Block(int(small), end, 0, small, before=tail)
            if tail is not None:
                tail.after = block
        grown = -(-max(0, block.offset + size - end) // page) * page
        block.size = end + grown - block.offset
        self.reserved += grown
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._tails[small] = block
        return block

    def _split(self, block: _Block, size: int) -> None:
        super()._split(block, size)
        if (rest := block.after) is not None and rest.free and block.unmapped:
            page = SMALL_SEGMENT if block.small else LARGE_SEGMENT
            mapped = -(-rest.offset // page) * page
            rest.unmapped = min(block.unmapped, max(0, rest.offset + rest.size - mapped))
            block.unmapped -= rest.unmapped
        if block is self._tails[block.small] and block.after is not None:
            self._tails[block.small] = block.after

    def _merge(self, first: _Block, second: _Block) -> _Block:
        if second is self._tails[second.small]:
            self._tails[second.small] = first
        first.unmapped += second.unmapped
        return super()._merge(first, second)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The allocator up to a mark, in bytes."""

    name: str
    allocated: int
    reserved: int
    peak_reserved: int
    """Since the mark before."""
    out_of_memory: int
    """Allocations, from the beginning, that the limit refused."""


def replay(events: Iterable[MemoryEvent], allocator: Allocator | None = None) -> list[Replayed]:
    """Replay memory events; the state of the allocator, by default a native one without a limit, at each mark."""
    allocator, marks = allocator or Allocator(), []
    for event in events:
        if event.kind == "allocate" and event.bytes:
            allocator.allocate(event.storage, event.bytes)
        elif event.kind == "free":
            allocator.free(event.storage)
        elif event.kind == "release":
            allocator.release()
        elif event.kind == "mark":
            sizes = allocator.allocated, allocator.reserved, allocator.peak_reserved
            marks.append(Replayed(event.name, *sizes, allocator.out_of_memory))
            allocator.peak_reserved = allocator.reserved
    return marks
