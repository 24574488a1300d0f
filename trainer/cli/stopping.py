"""Signals that end a command: a training saves what it has, everything else ends within seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ..errors import INTERRUPTED
from ..events import RunControl

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Ctrl-C, a container's stop, a closed terminal, and Ctrl-Break or a closed window on Windows."""


SECONDS_TO_END = 3.0
"""Longest life of a process without anything to save after a signal: threads may wait for a silent server."""


SECONDS_TO_LEAVE = 2.0
"""Longest wait of a command that is done for its threads, within SECONDS_TO_END of a signal."""


SECONDS_TO_AGREE = 20.0
"""Longest wait for the other processes to reach the same step. torchrun signals the survivors of a crash, which would
wait for the dead one, and kills them after 30 seconds."""


STOPPING = b"\nStopping after this step and saving. Press Ctrl-C again to exit at once without saving.\n"


ENDED = b"\nStopped; the run goes on from its last checkpoint, if it has one, when the same command is run again.\n"


class StopSignals:
    """Turns the first signal into a request to stop, and the second into an exit."""

    def __init__(self, control: RunControl, prints: bool, world_size: int) -> None:
        self.control = control
        self.prints = prints
        self.world_size = world_size
        self.exit_code = INTERRUPTED
        """Exit code of a stopped command, 128 and the signal's number."""
        self.opening = True
        """True while nothing asks `control`: a signal raises KeyboardInterrupt or SystemExit then."""
        self.saves = False
        """True once there are finished steps to save."""
        self.raised: BaseException | None = None
        """Exception that a signal has raised; None before that."""
        self._timer: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.exit_code = 128 + number
        if self.control.stopping:
            os._exit(self.exit_code)
        self.control.stop()
        if not self.saves:
            self._end_after(SECONDS_TO_END)
        elif self.world_size > 1:
            self._end_after(SECONDS_TO_AGREE)
        if self.opening:
            self.raised = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(self.exit_code)
            raise self.raised
        # Not print(): the signal may have interrupted one.
        if self.prints and self.saves:
            os.write(2, STOPPING)

    def _end_after(self, seconds: float) -> None:
        self._timer = _start_timer(seconds, self._end)

    def cancel_end(self) -> None:
        """Let the process live on: all processes stop at one step and save it, or the command has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if self.prints:
            os.write(2, ENDED)
        os._exit(self.exit_code)


@contextmanager
def stop_signals(control: RunControl, prints: bool, world_size: int) -> Iterator[StopSignals]:
    """Context in which signals stop the run that obeys `control`; `prints`: says so on stderr.

    Raises KeyboardInterrupt or SystemExit for a signal that comes before a run can stop by itself.
    """
    stop = StopSignals(control, prints, world_size)
    # nohup and launchers ignore a signal on purpose; Ctrl-C is the user's, also in a shell's background job.
    ours = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop.handle) for number in ours}
    try:
        yield stop
    except Exception:  # A signal inside a library may come out of it as an error of its own.
        if stop.raised is not None:
            raise stop.raised from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.cancel_end()


@contextmanager
def end_at_signals() -> Iterator[None]:
    """Context in which a signal other than Ctrl-C raises SystemExit with its exit code, so that what is half written is
    removed; the process ends after SECONDS_TO_END in any case. `stop_signals` takes over inside."""
    ended: list[SystemExit] = []
    timers: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        code = 128 + number
        timers.append(_start_timer(SECONDS_TO_END, lambda: os._exit(code)))
        ended.append(SystemExit(code))
        raise ended[0]

    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [n for n in SIGNALS if n != signal.SIGINT and signal.getsignal(n) == signal.SIG_DFL and in_main_thread]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
        if ended:  # A signal inside a finalizer is ignored.
            raise ended[0]
    except Exception:  # A signal inside a library may come out of it as an error of its own.
        if ended:
            raise ended[0] from None
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        for timer in timers:
            timer.cancel()


def leave(code: int) -> NoReturn:
    """End the process with an exit code, even when a thread goes on: the interpreter would wait for it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _start_timer(SECONDS_TO_LEAVE, lambda: os._exit(code))
    sys.exit(code)


def _start_timer(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer
