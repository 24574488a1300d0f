"""How the processes of a run meet, and how they notice that one of them is gone.

All of it goes through torch's key-value store over TCP, beside the connections that carry tensors. Who waits here can
be interrupted, waits as long as it takes, and learns within seconds that another process is gone; a collective of
tensors can do none of that, so the processes meet here before each one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FAILED, RunFailed

if TYPE_CHECKING:
    from torch.distributed import Store


BEAT_SECONDS = 0.5


STALE_SECONDS = 20.0
"""A process without a sign of life for so long is taken for lost."""


STALE_SECONDS_WHEN_TERMINATED = 5.0
"""The same when the launcher has told this process to end: most likely because it has seen another one die."""


HUNG_SECONDS = 1800.0
"""The same for one whose heart beats, but which has not moved on. No unit of work takes longer."""


STUCK_SECONDS = 5.0
"""A main thread that has not noticed a loss by then is taken to be stuck in a collective."""


LAST_WORDS_SECONDS = 10.0
"""How long a process that ends waits for the word of others."""


class RankLost(RunFailed):
    """Another process of the run is gone. `code` is the exit code that this leads to."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class RanksLeft(KeyboardInterrupt):
    """Another process was asked to stop, has saved and is gone."""


@dataclass(slots=True)
class _Peer:
    """What another process has last told, and when this one heard it."""

    text: str = ""
    heard: float = 0.0
    moved: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> dict[str, Any] | None:
        """How it ended, {"message", "code"}: the message of one that left of its own will is empty."""
        return self.told.get("end")


class Heartbeat:
    """One process's view of all of them."""

    def __init__(
        self,
        connect: Callable[[], Store],
        rank: int,
        world_size: int,
        keeper: str,
        stopping: Callable[[], bool],
        stop: Callable[[], None],
        rescue: Callable[[RankLost], None],
    ) -> None:
        """Returns when all processes are there.

        `connect` opens a connection to the store, which `keeper` (how to call it) keeps. `stopping` says whether this
        process was asked to stop; the others hear of it through their `stop`. `rescue` is called in a thread when a
        process is lost and the main thread does not notice; it must end the process.
        """
        self.rank, self.world_size = rank, world_size
        self.terminated = False
        """Set when the launcher has told this process to end."""
        self._keeper = keeper
        self._stopping, self._stop, self._rescue = stopping, stop, rescue
        self._store, self._beats = connect(), connect()
        self._met = 0
        self._own: dict[str, Any] = {
            "beat": 0,
            "moves": 0,
            "process": f"process {os.getpid()} on {socket.gethostname()}",
        }
        self._peers = {other: _Peer() for other in range(world_size) if other != rank}
        self._sending = threading.Lock()
        self._lost: dict[int, str] = {}
        self._loss: RankLost | None = None
        self._ending = threading.RLock()
        self._send()
        self.all_gather_object()
        self._listen()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def all_gather_object(self, value: Any = None) -> list[Any]:
        """Wait until every process has come here; what each has brought (JSON), by rank.

        Raises RankLost or RanksLeft when one will not come.
        """
        number, self._met = self._met, self._met + 1
        keys = [f"meet/{number}/{rank}" for rank in range(self.world_size)]
        pause = 0.0005
        try:
            self._store.set(keys[self.rank], json.dumps(value))
            while not self._store.check(keys):
                self.check()
                time.sleep(pause)
                pause = min(pause * 1.5, 0.1)
            values = [json.loads(text) for text in self._store.multi_get(keys)]
            if number:
                self._store.delete_key(f"meet/{number - 1}/{self.rank}")
        except RunFailed:
            raise
        except RuntimeError:
            self._lose_keeper()
            self.check()
        return values

    def check(self) -> None:
        """Raises RankLost or RanksLeft when a process is gone. To be called between all units of work."""
        self._own["moves"] += 1
        if self._loss:
            self._ending.acquire()  # For good. While the other thread rescues, this one waits here for the end.
            raise self._loss
        if any(peer.end for peer in self._peers.values()):
            raise RanksLeft

    def wait_for_loss(self) -> None:
        """After a collective has failed: raises as `check` does when within the time that it takes to notice a
        process is found to be gone."""
        deadline = time.monotonic() + STALE_SECONDS + 2 * BEAT_SECONDS
        while time.monotonic() < deadline:
            self.check()
            time.sleep(BEAT_SECONDS)

    @property
    def is_first_alive(self) -> bool:
        """Whether no rank before this one is left."""
        return all(rank in self._lost for rank in range(self.rank))

    def end(self, message: str = "", code: int = 0) -> None:
        """Tell the others that this process ends: with a message and an exit code when it has failed."""
        self._own["end"] = {"message": message, "code": code}
        try:
            self._send()
        except RuntimeError:
            return

    def wait_for_ends(self) -> None:
        """Give the others time to hear of this process's end and to tell of theirs."""
        time.sleep(3 * BEAT_SECONDS)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < deadline and not all(
            peer.end or rank in self._lost for rank, peer in self._peers.items()
        ):
            time.sleep(0.1)

    def is_said(self, message: str) -> bool:
        """Whether a rank before this one tells the person the same, or does so within a few seconds."""
        message = message.removeprefix("error: ")
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < deadline:
            before = [peer for rank, peer in self._peers.items() if rank < self.rank]
            words = [peer.end["message"].removeprefix("error: ") for peer in before if peer.end and peer.end["message"]]
            if any(message in word or word in message for word in words):
                return True
            if all(peer.end or rank in self._lost for rank, peer in self._peers.items() if rank < self.rank):
                return False
            time.sleep(0.1)
        return False

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()
        self._thread.join()

    # the thread

    def _watch(self) -> None:
        before, noticed = time.monotonic(), 0.0
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - before > STALE_SECONDS_WHEN_TERMINATED / 2:
                # It was this process that slept: what it has not heard says nothing about the others.
                for peer in self._peers.values():
                    peer.heard = peer.moved = now
            before = now
            try:
                self._send()
                self._listen()
            except RuntimeError:
                self._lose_keeper()
            if self._loss:
                noticed = noticed or now
                if now - noticed > STUCK_SECONDS and self._ending.acquire(blocking=False):
                    self._rescue(self._loss)

    def _send(self) -> None:
        with self._sending:
            self._own["beat"] += 1
            self._own["stopping"] = self._stopping()
            self._beats.set(f"beat/{self.rank}", json.dumps(self._own))

    def _listen(self) -> None:
        texts = self._beats.multi_get([f"beat/{rank}" for rank in self._peers])
        now = time.monotonic()
        limit = STALE_SECONDS_WHEN_TERMINATED if self.terminated else STALE_SECONDS
        for (rank, peer), text in zip(self._peers.items(), texts, strict=True):
            if text != peer.text:
                before, peer.text, peer.heard, peer.told = peer.told, text, now, json.loads(text)
                if peer.told["moves"] != before.get("moves"):
                    peer.moved = now
                elif now - peer.moved > HUNG_SECONDS and not peer.end:
                    self._lose(rank, f"hangs: it has not moved on for {HUNG_SECONDS / 60:.0f} minutes.", FAILED)
                if peer.told["stopping"]:
                    self._stop()
                if peer.end and peer.end["message"]:
                    self._lose(rank, f"failed: {peer.end['message'].removeprefix('error: ')}", peer.end["code"])
            elif now - peer.heard > limit and not peer.end:
                self._lose(rank, f"is lost: no sign of life for {limit:.0f} seconds.", FAILED)

    def _lose(self, rank: int, why: str, code: int) -> None:
        if rank not in self._lost:
            message = f"Rank {rank} of {self.world_size} ({self._peers[rank].told['process']}) {why}"
            self._lost[rank] = message
            self._loss = self._loss or RankLost(message, code)

    def _lose_keeper(self) -> None:
        if self._loss or any(peer.end for peer in self._peers.values()):
            return
        if self._keeper == "rank 0":
            self._lose(0, "is lost: its connection broke.", FAILED)
        else:
            self._loss = RankLost(f"The connection to {self._keeper}, which keeps the processes together, broke.")
