"""Tensors offloaded to one flat host buffer, page-locked for CUDA, from which they are copied to the device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

ALIGNMENT = 256
"""Bytes. cudaMalloc's alignment (CUDA C++ Programming Guide); kernels and compiled code rely on 16."""


PAGE = 4096
"""Bytes of a memory page on x86-64 and most ARM systems."""


class PinnedTensors:
    """Tensors of any shape and dtype, moved into one host buffer. Their `data` lies there until `point_at`."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Copy `tensors` into the buffer; `device` is where they will be copied to."""
        self.tensors = list(tensors)
        self._offsets: list[int] = []
        end = 0
        for tensor in self.tensors:
            self._offsets.append(end)
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self.bytes = end
        buffer = torch.empty(end + 2 * PAGE, dtype=torch.uint8)
        start = -buffer.data_ptr() % PAGE
        # Complete pages that no other buffer shares: a page can be locked only once.
        pages = buffer[start : start + -(-end // PAGE) * PAGE]
        if device.type == "cuda":
            _lock_pages(self, pages)
        self.flat = pages[:end]
        self._host_views = self.views_in(self.flat)
        for tensor, view in zip(self.tensors, self._host_views, strict=True):
            view.copy_(tensor)
        self.point_at_host()

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
    two. Where the system refuses, the memory stays pageable, which is correct but slower to copy from."""
    address, size = pages.data_ptr(), pages.numel()
    if not size:
        return
    if int(_cuda_runtime().cudaHostRegister(address, size, 0)) == 0:
        weakref.finalize(owner, _unlock_pages, address)
        return
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)  # CUDA reports the refusal at the next kernel launch: take it here.


def _unlock_pages(address: int) -> None:
    torch.cuda.synchronize()  # Enqueued copies may still read the pages.
    _cuda_runtime().cudaHostUnregister(address)


def _cuda_runtime() -> Any:
    """torch's binding of the CUDA runtime, which is untyped."""
    return torch.cuda.cudart()
