"""ComfyUI as the host of a run: cancelling, progress bar, device memory and error messages."""

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

from ..trainer.errors import BadInput, RunFailed, printable
from ..trainer.events import Event, Notice, Progress

T = TypeVar("T")

MESSAGE_SECONDS = 0.125
"""Seconds between two messages of a kind to the page; a judgement: eight a second look smooth."""


def follow(events: Generator[Event, None, T], show: Callable[[Event], None]) -> T:
    """Run a generator of events to its end, showing each one; returns the generator's return value.

    Checks ComfyUI's Cancel at every event: it closes the generator, which saves a checkpoint, and raises
    InterruptProcessingException. Turns off the inference mode in which ComfyUI runs nodes, as training needs gradients.
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
    """Context that raises BadInput and RunFailed as plain errors, so that ComfyUI shows their message alone."""
    try:
        yield
    except BadInput as error:
        raise ValueError(printable(str(error))) from None
    except RunFailed as error:
        raise RuntimeError(printable(str(error))) from None


@contextmanager
def borrowed_device(kept: ModelPatcher) -> Iterator[torch.device]:
    """Context with ComfyUI's device, free of all models but `kept`; ComfyUI gives back their page-locked memory too.

    On exit `kept` is registered with ComfyUI if it has something loaded, and what else was loaded inside is released,
    also on an error, whose traceback would otherwise keep tensors alive.
    """
    from ..trainer.device import release_host_cache

    stays = [loaded for loaded in memory.current_loaded_models if loaded.model is kept]
    if stays:
        memory.free_memory(1e30, kept.load_device, keep_loaded=stays)
    else:
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
        release_host_cache()
        if kept.loaded_size():
            memory.load_models_gpu([kept])


def device_memory() -> list[int] | None:
    """Bytes of device memory in use by any process, and in total; None on the CPU."""
    device = memory.get_torch_device()
    if device.type == "cpu":
        return None
    total = int(memory.get_total_memory(device))
    return [max(0, total - int(memory.get_free_memory(device))), total]


def device_line() -> str:
    """Describe the device: the GPU's name and memory, or the CPU."""
    device = memory.get_torch_device()
    if device.type == "cpu":
        return "on the CPU"
    return f"on {memory.get_torch_device_name(device)}, {memory.get_total_memory(device) / 2**30:.0f} GiB"


def unload(patcher: ModelPatcher) -> None:
    """Unload one of ComfyUI's models from the device; the others stay."""
    others = [
        loaded for loaded in memory.current_loaded_models if loaded.model and loaded.model.model is not patcher.model
    ]
    memory.free_memory(1e30, patcher.load_device, keep_loaded=others)


class Pace:
    """Rate limiter: allows one action per `seconds`."""

    def __init__(self, seconds: float = MESSAGE_SECONDS) -> None:
        self.seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        """Tell whether an action is allowed now, and if so count it."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.seconds
        return True

    def wait(self) -> None:
        """Sleep until an action is allowed, and count it."""
        while not self.due():
            time.sleep(max(0.0, self._next - time.monotonic()))


class NodeDisplay:
    """A node's progress bar."""

    def __init__(self, node_id: str) -> None:
        self._bar = ProgressBar(1, node_id=node_id)
        self._pace = Pace()

    def progress(self, done: int, total: int) -> None:
        """Move the progress bar to `done` of `total`."""
        if done == total or self._pace.due():
            self._bar.update_absolute(done, total)

    def show(self, event: Event) -> None:
        """Show the progress and notices of an operation other than training."""
        if isinstance(event, Progress):
            self.progress(event.done, event.total)
        if isinstance(event, Notice):
            logging.warning("%s", printable(event.message))


def progress_line(event: Progress) -> str:
    """Format progress: `caching texts 3/400`."""
    return f"{' '.join(filter(None, (event.phase, event.note)))} {event.done}/{event.total}"
