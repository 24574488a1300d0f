"""Tensors whose home is host memory: one flat buffer, page-locked for CUDA, from which they visit the device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch

ALIGNMENT = 256
"""Bytes. What CUDA's own allocator gives; kernels and compiled code rely on 16."""


PAGE = 4096


class PinnedTensors:
    """Tensors moved into one host buffer of their own. Their `data` is there until it is pointed elsewhere."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """`device` is where they will be copied to."""
        self.tensors = list(tensors)
        self._offsets: list[int] = []
        end = 0
        for tensor in self.tensors:
            self._offsets.append(end)
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self.bytes = end
        buffer = torch.empty(end + 2 * PAGE, dtype=torch.uint8)
        start = -buffer.data_ptr() % PAGE
        # Whole pages, which no other buffer shares: a page can be locked once.
        pages = buffer[start : start + -(-end // PAGE) * PAGE]
        if device.type == "cuda":
            _lock_pages(self, pages)
        self.flat = pages[:end]
        self._home = self.views_in(self.flat)
        for tensor, view in zip(self.tensors, self._home, strict=True):
            view.copy_(tensor)
        self.go_home()

    def views_in(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of the same shapes and strides in another flat uint8 buffer of at least as many bytes."""
        views = []
        for tensor, offset in zip(self.tensors, self._offsets, strict=True):
            strides = torch.empty_like(tensor, device="meta").stride()
            part = flat[offset : offset + tensor.numel() * tensor.element_size()].view(tensor.dtype)
            views.append(part.as_strided(tensor.shape, strides))
        return views

    def copy_to(self, flat: torch.Tensor) -> None:
        """Copy the values to the front of another flat buffer; from page-locked memory without waiting for it."""
        flat[: self.bytes].copy_(self.flat, non_blocking=True)

    def point_at(self, views: Sequence[torch.Tensor]) -> None:
        """Let the tensors' data be these."""
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view

    def go_home(self) -> None:
        """Let the tensors' data be the host's again."""
        self.point_at(self._home)


def _lock_pages(owner: object, pages: torch.Tensor) -> None:
    """Lock a buffer's pages while `owner` lives. torch's own page-locked memory comes in powers of two. Where the
    system locks no more, the memory stays as it is: right, but slower to copy from."""
    address, size = pages.data_ptr(), pages.numel()
    if not size:
        return
    if int(torch.cuda.cudart().cudaHostRegister(address, size, 0)) == 0:
        weakref.finalize(owner, _unlock_pages, address)
        return
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)  # CUDA hands the refusal to the next kernel that is launched.


def _unlock_pages(address: int) -> None:
    torch.cuda.synchronize()  # What is enqueued may still read them.
    torch.cuda.cudart().cudaHostUnregister(address)
