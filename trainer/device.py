"""The device that a run has: what it is, and how much memory is free there and beside it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from .config.settings import Precision
from .quantization.benchmark import fast_precisions
from .quantization.formats import FORMATS

ADA = (8, 9)
"""Compute capability that consumer GPUs are assumed to have."""


CONSUMER_LIMIT = 40_000_000_000
"""Bytes. A card that is only known by its memory is taken for a consumer's below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """Where a run's tensors live. Bytes are decimal: a "24 GB" card has 24e9."""

    kind: str
    """torch's device type."""
    free: int
    """Bytes of device memory that the run may use."""
    host: int
    """Bytes of free host memory."""
    bf16: bool
    fast_precisions: frozenset[Precision] = frozenset()
    """Precisions whose weights are multiplied faster as they are than with their values."""

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


def query_device(device: torch.device) -> DeviceInfo:
    """The card that a run would find now."""
    host = psutil.virtual_memory().available
    if device.type == "cpu":
        return DeviceInfo(kind="cpu", free=host, host=host, bf16=False)
    if device.type == "cuda":
        # First, for what it tries stays in the allocator's hands.
        fast = fast_precisions(device)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        return DeviceInfo(kind="cuda", free=free, host=host, bf16=torch.cuda.is_bf16_supported(), fast_precisions=fast)
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return DeviceInfo(kind="mps", free=free, host=host, bf16=True)
    return DeviceInfo(
        kind=device.type, free=torch.get_device_module(device).mem_get_info(device)[0], host=host, bf16=True
    )


def assumed_gpu(gigabytes: float, host_gigabytes: float | None = None) -> DeviceInfo:
    """A CUDA card of which nothing is known but its memory, in a machine with this much free host memory."""
    host = psutil.virtual_memory().available if host_gigabytes is None else int(host_gigabytes * 1e9)
    free = int(gigabytes * 1e9)
    fast = frozenset(
        row.precision
        for row in FORMATS.values()
        if free < CONSUMER_LIMIT and row.precision and row.capability and row.capability <= ADA
    )
    return DeviceInfo(kind="cuda", free=free, host=host, bf16=True, fast_precisions=fast)


def default_device() -> torch.device:
    """The accelerator that torch finds (CUDA, ROCm, MPS, XPU), else the CPU."""
    # A CUDA build of torch names its accelerator on machines without a GPU too.
    available = torch.accelerator.is_available()
    return torch.accelerator.current_accelerator() if available else torch.device("cpu")
