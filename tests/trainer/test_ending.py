"""A command that is told to end does so within seconds, whatever its threads wait for, and saves what it has first."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from trainer.cli.stopping import StopSignals, end_at_signals, stop_signals
from trainer.encoding.encoder import Encoder
from trainer.encoding.text import TextEmbeddings
from trainer.events import Progress, RunControl, Step
from trainer.threads import IDLE, PATIENCE, prefetch, prefetch_or_idle
from trainer.training.checkpoint import last_step

REPO = Path(__file__).parents[2]
LONG = 40.0
"""Seconds that a silent server takes in these tests; each must end long before, also on a busy machine."""


@pytest.fixture
def silent() -> Iterator[threading.Event]:
    """What nobody answers until the test is over."""
    answer = threading.Event()
    yield answer
    answer.set()


@pytest.mark.slow
def test_a_command_that_is_done_does_not_wait_for_its_threads() -> None:
    program = (
        "import threading, time; from concurrent.futures import ThreadPoolExecutor\n"
        "from trainer.cli.stopping import leave\n"
        f"ThreadPoolExecutor(1).submit(time.sleep, {LONG}); print('done'); leave(130)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "done\n", "")
    assert time.monotonic() - begun < LONG / 2


def test_closing_waits_for_no_item_that_hangs(silent: threading.Event) -> None:
    results = prefetch(range(8), lambda number: number if number < 2 else silent.wait(LONG), ahead=4, threads=2)
    assert (next(results), next(results)) == (0, 1)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < LONG / 2 + PATIENCE


def test_waiting_is_said(silent: threading.Event) -> None:
    with closing(prefetch_or_idle([1], lambda _: silent.wait(LONG), 1, 1, idle=0.01)) as results:
        assert [next(results), next(results)] == [None, None]
        silent.set()
        assert next(future for future in results if future is not None).result() is True
        assert list(results) == []


@pytest.mark.slow
def test_texts_that_wait_for_a_server_can_be_stopped_and_lose_no_step(qwen, runs, silent, monkeypatch) -> None:
    """Without the disk cache, in the middle of the training."""
    monkeypatch.setattr("trainer.training.dataloader.TEXT_BLOCK", 2)
    real, asked = TextEmbeddings._controls, []

    def controls(texts: TextEmbeddings, example):
        asked.append(example)
        if len(asked) > 4:
            silent.wait(LONG)
        return real(texts, example)

    monkeypatch.setattr(TextEmbeddings, "_controls", controls)
    begun = None
    with closing(runs.events(qwen, steps=20, sample_every=20, cache_text_embeddings=False)) as events:
        steps = 0
        for event in events:
            steps += isinstance(event, Step)
            if steps >= 2 and isinstance(event, Progress) and event.phase == "caching":
                begun = begun or time.monotonic()
                if time.monotonic() - begun > IDLE:
                    break
    assert steps >= 2 and time.monotonic() - begun < LONG / 2
    assert last_step(runs.folder / "run" / "checkpoints") == steps


@pytest.mark.slow
def test_images_that_wait_for_a_server_can_be_stopped(kontext, runs, silent, monkeypatch) -> None:
    monkeypatch.setattr(Encoder, "_read", lambda *_: silent.wait(LONG))
    begun = time.monotonic()
    with closing(runs.events(kontext)) as events:
        waited = next(event for event in events if isinstance(event, Progress) and event.note == "images")
    assert waited.done == 0
    assert time.monotonic() - begun < LONG / 2


@pytest.mark.slow
def test_processes_that_agree_to_stop_are_not_ended_while_they_save(monkeypatch) -> None:
    ended = []
    monkeypatch.setattr("trainer.cli.stopping.SECONDS_TO_AGREE", 0.2)
    monkeypatch.setattr(StopSignals, "_end", lambda stop: ended.append(stop))
    for agreed in (True, False):
        with stop_signals(RunControl(), prints=False, world_size=2) as stop:
            stop.opening, stop.saves = False, True
            signal.raise_signal(signal.SIGINT)
            while not stop.control.stopping:
                time.sleep(0.01)
            if agreed:
                stop.cancel_end()
            end = time.monotonic() + (0.6 if agreed else 30)
            while not ended and time.monotonic() < end:
                time.sleep(0.01)
        assert len(ended) == (0 if agreed else 1)


def test_a_command_that_has_ended_is_not_ended_again(monkeypatch) -> None:
    """A program that calls it goes on."""
    ended = []
    monkeypatch.setattr("trainer.cli.stopping.SECONDS_TO_END", 0.2)
    monkeypatch.setattr(StopSignals, "_end", lambda stop: ended.append(stop))
    with pytest.raises(KeyboardInterrupt), stop_signals(RunControl(), prints=False, world_size=1):
        signal.raise_signal(signal.SIGINT)
        time.sleep(LONG)
    time.sleep(0.6)
    assert not ended


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_what_a_library_makes_of_a_signal_is_the_signal(number: int, raised: type[BaseException]) -> None:
    """tqdm releases a lock that the signal kept it from taking."""
    with pytest.raises(raised), stop_signals(RunControl(), prints=False, world_size=1):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RuntimeError("cannot release un-acquired lock") from None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_inside_a_finalizer_is_not_forgotten() -> None:
    """Python drops what a finalizer raises."""
    with pytest.raises(SystemExit) as ended, end_at_signals():
        weakref.finalize(RunControl(), signal.raise_signal, signal.SIGTERM)
        gc.collect()
    assert ended.value.code == 143


EARLY = """
import runpy, sys
class Interrupted:
    def find_spec(self, name, *rest):
        if name == "trainer.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
runpy.run_module("trainer", run_name="__main__")
"""


def test_ctrl_c_in_the_first_moments_is_no_stack_trace() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stderr) == (130, "")
