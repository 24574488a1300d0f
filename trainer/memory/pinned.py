"""Host memory from which tensors are copied to the device: page-locked for CUDA, where the system allows it.

Page-locked memory is scarce on some systems. What is copied most often gets it first: batches and the inputs of
checkpointed blocks, then streamed blocks, modulation last. Where it ends, memory is pageable: correct, but slower to
copy.
"""

from __future__ import annotations

import platform
import sys
import weakref
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import psutil
import torch

ALIGNMENT = 256
"""Bytes. cudaMalloc's alignment (CUDA C++ Programming Guide); kernels and compiled code rely on 16."""


PAGE = 4096
"""Bytes of a memory page on x86-64 and most ARM systems."""


STEP = 2**20
"""Bytes to whose multiples the buffers of a pool are rounded up, so that captions of other lengths seldom need new
ones. A judgement."""


WSL_BYTES = 1_000_000_000
"""Bytes that can be page-locked under WSL 2, about (NVIDIA's CUDA on WSL User Guide calls it limited)."""


BATCH_BYTES = 500_000_000
"""Bytes of page-locked memory for micro-batches: some 35 loaded ahead, of up to 16 MB with their texts."""


class PageLocks:
    """Budget of page-locked memory of this process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes; lowered to what was granted when the system refuses more."""
        self.locked = 0
        self._is_short, self._said = False, False

    def allow(self, size: int, leave: int) -> bool:
        """Tell whether `size` bytes may be locked so that `leave` bytes remain."""
        allowed = self.locked + size + leave <= self.limit
        self._is_short |= not allowed
        return allowed

    def refuse(self) -> None:
        """Take note that the system has refused to lock more."""
        self.limit, self._is_short = self.locked, True

    def take_notice(self) -> str | None:
        """Return, once, a message for the user that page-locked memory was short; None when it was not."""
        if self._said or not self._is_short:
            return None
        self._said = True
        return (
            f"The system grants {self.limit / 1e9:.1f} GB of page-locked memory, less than the offloaded data takes. "
            "The rest is copied to the GPU from pageable memory, which is slower; results are the same."
        )


def _system_limit() -> int:
    """Bytes that the system can be expected to let a process page-lock."""
    total = psutil.virtual_memory().total
    if sys.platform == "win32":
        return total // 2  # the limit of the Windows Display Driver Model for memory shared with GPUs
    return min(total, WSL_BYTES) if "microsoft" in platform.release().lower() else total


PAGE_LOCKS = PageLocks(_system_limit())


class HostBuffer:
    """A flat buffer in host memory. `flat` is uint8."""

    def __init__(self, size: int) -> None:
        """Allocate `size` bytes of pageable memory."""
        buffer = torch.empty(size + 2 * PAGE, dtype=torch.uint8)
        start = -buffer.data_ptr() % PAGE
        # Complete pages that no other buffer shares: a page can be locked only once.
        self._pages = buffer[start : start + -(-size // PAGE) * PAGE]
        self.flat = self._pages[:size]

    def lock(self, device: torch.device, leave: int = 0) -> HostBuffer:
        """Page-lock the buffer if `device` is CUDA and that leaves `leave` bytes for more frequent copies."""
        if device.type == "cuda" and len(self.flat) and PAGE_LOCKS.allow(self._pages.numel(), leave):
            _lock_pages(self, self._pages)
        return self


class BufferPool:
    """Host buffers that are used again when the tensors in them are gone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._free: dict[Hashable, list[HostBuffer]] = defaultdict(list)

    def take(self, shape: Sequence[int], dtype: torch.dtype, kind: Hashable = None) -> torch.Tensor:
        """Return a contiguous host tensor of any shape and dtype, without values. `kind` separates buffers of different
        uses, whose sizes differ."""
        size = torch.empty(shape, dtype=dtype, device="meta").nbytes
        free = self._free[kind]
        fitting = [buffer for buffer in free if len(buffer.flat) >= size]
        if fitting:
            buffer = min(fitting, key=lambda fit: len(fit.flat))
            free.remove(buffer)
        else:
            if free:  # grow one instead of adding one
                free.remove(max(free, key=lambda small: len(small.flat)))
            buffer = HostBuffer(-(-size // STEP) * STEP).lock(self.device)
        tensor = buffer.flat[:size].view(dtype).view(*shape)
        weakref.finalize(tensor, free.append, buffer).atexit = False
        return tensor


def page_locked_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor of any shape and dtype to torch's page-locked memory; itself where the system refuses."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        PAGE_LOCKS.refuse()
        return tensor


class PinnedTensors:
    """Tensors of any shape and dtype, moved into one host buffer. Their `data` lies there until `point_at`."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy `tensors` into the buffer."""
        self.tensors = list(tensors)
        self._offsets: list[int] = []
        end = 0
        for tensor in self.tensors:
            self._offsets.append(end)
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self.bytes = end
        self._buffer = HostBuffer(end)
        self.flat = self._buffer.flat
        self._host_views = self.views_in(self.flat)
        for tensor, view in zip(self.tensors, self._host_views, strict=True):
            view.copy_(tensor)
        self.point_at_host()

    def lock(self, device: torch.device, leave: int = 0) -> PinnedTensors:
        """Page-lock the buffer for copies to `device`, as `HostBuffer.lock` does."""
        self._buffer.lock(device, leave)
        return self

    def views_in(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Make views with the tensors' shapes, strides and dtypes in another flat uint8 buffer, at least as large."""
        views = []
        for tensor, offset in zip(self.tensors, self._offsets, strict=True):
            strides = torch.empty_like(tensor, device="meta").stride()
            part = flat[offset : offset + tensor.numel() * tensor.element_size()].view(tensor.dtype)
            views.append(part.as_strided(tensor.shape, strides))
        return views

    def copy_to(self, flat: torch.Tensor) -> None:
        """Copy all values to the start of another flat uint8 buffer; asynchronous from page-locked memory."""
        flat[: self.bytes].copy_(self.flat, non_blocking=True)

    def point_at(self, views: Sequence[torch.Tensor]) -> None:
        """Set the tensors' data to `views`, any shape and dtype as `views_in` makes them."""
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view

    def point_at_host(self) -> None:
        """Set the tensors' data to the host buffer again."""
        self.point_at(self._host_views)


def _lock_pages(owner: object, pages: torch.Tensor) -> None:
    """Page-lock a buffer while `owner` lives. torch's own pinned allocator is not used: it rounds sizes up to powers of
    two. Where the system refuses, the memory stays pageable."""
    address, size = pages.data_ptr(), pages.numel()
    if int(_cuda_runtime().cudaHostRegister(address, size, 0)) == 0:
        PAGE_LOCKS.locked += size
        # The end of the process gives its pages back by itself, and CUDA may be gone by then.
        weakref.finalize(owner, _unlock_pages, address, size).atexit = False
        return
    PAGE_LOCKS.refuse()
    _take_error()


def _take_error() -> None:
    """Take the error of a refusal, which CUDA reports at the next kernel launch."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)


def _unlock_pages(address: int, size: int) -> None:
    PAGE_LOCKS.locked -= size
    with suppress(RuntimeError):  # a device that has failed before, whose pages the process gives back
        torch.cuda.synchronize()  # Enqueued copies may still read the pages.
        _cuda_runtime().cudaHostUnregister(address)


def _cuda_runtime() -> Any:
    """torch's binding of the CUDA runtime, which is untyped."""
    return torch.cuda.cudart()
