"""The device that a run has: what it is, and how much memory is free there and beside it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

FAST_BF16 = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities of data-centre cards: bf16 products there are about as fast as int8 ones with their
quantization. On the others bf16 with float32 sums runs at half of that."""
CONSUMER_LIMIT = 40_000_000_000
"""Bytes. A card that is only known by its memory is taken for a consumer's below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Where a run's tensors live. Bytes are decimal: a "24 GB" card has 24e9."""

    kind: str
    """torch's device type."""
    free: int
    """Bytes of device memory that the run may use."""
    host: int
    """Bytes of free host memory."""
    bf16: bool
    integer_products: bool
    """Whether int8 and fp8 weights are multiplied faster as they are."""

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


def card_of(device: torch.device) -> Card:
    """The card that a run would find now."""
    host = psutil.virtual_memory().available
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        # An AMD card names no such capability and has no int8 product here.
        integer = torch.version.hip is None and capability >= (8, 0) and capability not in FAST_BF16
        free = torch.cuda.mem_get_info(device)[0]
        return Card(kind="cuda", free=free, host=host, bf16=torch.cuda.is_bf16_supported(), integer_products=integer)
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return Card(kind="mps", free=free, host=host, bf16=True, integer_products=False)
    if device.type == "cpu":
        return Card(kind="cpu", free=host, host=host, bf16=False, integer_products=False)
    free = torch.get_device_module(device).mem_get_info(device)[0]
    return Card(kind=device.type, free=free, host=host, bf16=True, integer_products=False)


def card_with(gigabytes: float, host_gigabytes: float | None = None) -> Card:
    """A CUDA card of which nothing is known but its memory, in a machine with this much free host memory."""
    host = psutil.virtual_memory().available if host_gigabytes is None else int(host_gigabytes * 1e9)
    free = int(gigabytes * 1e9)
    return Card(kind="cuda", free=free, host=host, bf16=True, integer_products=free < CONSUMER_LIMIT)
