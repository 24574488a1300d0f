"""Stand-ins for CUDA's streams, events and runtime, which note what is asked of them in the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from .log import Log


class Stream:
    """A stream that orders nothing."""

    names = count()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.name = next(Stream.names)

    def wait_stream(self, other: Stream) -> None:
        """Note that this stream waits for another."""
        Log.current().waits.append(("stream", self.name, other.name))

    def wait_event(self, event: Event) -> None:
        """Note that this stream waits for an event."""
        Log.current().waits.append(("event", self.name, event.name))

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, by default a new one."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Say that all work is done."""
        return True

    def synchronize(self) -> None:
        """Note that the host waits."""
        Log.current().syncs.append("Stream.synchronize")


class Event:
    """An event that has always happened."""

    names = count()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.name = next(Event.names)

    def record(self, stream: Stream | None = None) -> None:
        """Note that a stream records the event."""
        Log.current().waits.append(("record", (stream or current_stream()).name, self.name))

    def wait(self, stream: Stream | None = None) -> None:
        """Note that a stream waits for the event."""
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        """Say that it happened."""
        return True

    def synchronize(self) -> None:
        """Note that the host waits."""
        Log.current().syncs.append("Event.synchronize")


_STREAMS = [Stream()]


def current_stream(*_: Any) -> Stream:
    """Return the innermost stream."""
    return _STREAMS[-1]


@contextmanager
def stream(entered: Stream | None) -> Iterator[None]:
    """Context in which `entered` is the current stream."""
    _STREAMS.append(entered or current_stream())
    try:
        yield
    finally:
        _STREAMS.pop()


class Runtime:
    """torch.cuda.cudart(): page-locks every buffer, and notes its bytes."""

    class cudaError:  # torch's name
        """Results of the runtime's calls."""

        success = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        """Page-lock a buffer."""
        Log.current().page_locked.append(size)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        """Free a page-locked buffer."""
        return 0
