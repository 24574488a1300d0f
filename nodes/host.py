"""What running inside ComfyUI takes: its Cancel button, its progress bar, its memory, its way of showing errors."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar

from ..trainer.errors import BadInput, RunFailed
from ..trainer.events import Event, Notice, Progress

T = TypeVar("T")

MESSAGE_SECONDS = 0.125
"""Between two messages of a kind to the page: eight a second."""


def follow(events: Generator[Event, None, T], show: Callable[[Event], None]) -> T:
    """Go through a generator of events, show each, and give what it returns.

    ComfyUI's Cancel is looked for at every event; it closes the generator, which saves, and then goes up. ComfyUI runs
    nodes in inference mode, where nothing can be trained: here it is off.
    """
    with torch.inference_mode(False), torch.enable_grad(), closing(events):
        while True:
            memory.throw_exception_if_processing_interrupted()
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
            show(event)


@contextmanager
def readable_errors() -> Iterator[None]:
    """What a person is meant to read goes to ComfyUI as a plain error of one message."""
    try:
        yield
    except BadInput as error:
        raise ValueError(str(error)) from None
    except RunFailed as error:
        raise RuntimeError(str(error)) from None


@contextmanager
def borrowed_device() -> Iterator[torch.device]:
    """ComfyUI's device with its models moved out of the way. What was loaded inside is gone from it at the end, even
    while an error is on its way up with the frames that held it."""
    memory.unload_all_models()
    memory.soft_empty_cache()
    try:
        yield memory.get_torch_device()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        memory.soft_empty_cache()


def device_memory() -> list[int] | None:
    """Bytes of device memory in use by any process, and in total; None on the CPU."""
    device = memory.get_torch_device()
    if device.type == "cpu":
        return None
    total = int(memory.get_total_memory(device))
    return [max(0, total - int(memory.get_free_memory(device))), total]


def device_line() -> str:
    """What is trained on: the card and its memory, or the CPU."""
    device = memory.get_torch_device()
    if device.type == "cpu":
        return "on the CPU"
    return f"on {memory.get_torch_device_name(device)}, {memory.get_total_memory(device) / 2**30:.0f} GiB"


def unload(patcher: ModelPatcher) -> None:
    """Take one of ComfyUI's models off the device; the others stay."""
    others = [
        loaded for loaded in memory.current_loaded_models if loaded.model and loaded.model.model is not patcher.model
    ]
    memory.free_memory(1e30, patcher.load_device, keep_loaded=others)


class Pace:
    """Lets something happen at most once in a while."""

    def __init__(self, seconds: float = MESSAGE_SECONDS) -> None:
        self.seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time again; if so, the time is taken."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.seconds
        return True

    def wait(self) -> None:
        """Sleep until it is time again, and take the time."""
        while not self.due():
            time.sleep(max(0.0, self._next - time.monotonic()))


class NodeDisplay:
    """A node's progress bar."""

    def __init__(self, node_id: str) -> None:
        self._bar = ProgressBar(1, node_id=node_id)
        self._pace = Pace()

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if done == total or self._pace.due():
            self._bar.update_absolute(done, total)

    def show(self, event: Event) -> None:
        """Show the progress of something that is not a training."""
        if isinstance(event, Progress):
            self.progress(event.done, event.total)
        if isinstance(event, Notice):
            logging.warning("%s", event.message)


def progress_line(event: Progress) -> str:
    """`caching texts 3/400`."""
    return f"{' '.join(filter(None, (event.phase, event.note)))} {event.done}/{event.total}"
