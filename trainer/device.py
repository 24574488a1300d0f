"""The device of a run: its kind, its free memory, and what it computes fast."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import psutil
import torch

from .compiled import has_compiler
from .config.cuda_allocator import has_expandable_segments
from .config.settings import Precision
from .quantization.benchmark import compute_capability, fast_precisions
from .quantization.formats import FORMATS

ADA = (8, 9)
"""Compute capability assumed of consumer GPUs (RTX 40xx): their bf16 matmuls with float32 sums run at half rate, so
that int8 and fp8 pay. A judgement: the true GPU is benchmarked when it is there."""


CONSUMER_LIMIT = 40_000_000_000
"""Bytes. A GPU known by its memory alone counts as a consumer's below this: the largest (RTX 5090) has 32 GB, and
data center GPUs with less than 40 GB (A10, L4) are much alike. A judgement."""


RESERVE = 500_000_000
"""Bytes for the driver's context and the libraries' workspaces on the device. A judgement: an H100's context with
cuBLAS and cuDNN takes about that."""


SPILLING_RESERVE = 1_000_000_000
"""Bytes where the driver moves memory to the host before the device is full. A judgement: twice the others', because
the desktop's share varies during a run."""


EXPANDABLE_GAPS, SEGMENT_GAPS = 0.08, 0.12
"""Share of activations that torch's allocator loses to gaps, with and without expandable segments. Replays of whole
steps of both models, text lengths and aspect ratios varied, lost 7 to 10 % without (tests/fake_cuda/allocator.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """The device that trains. Gigabytes are decimal: a "24 GB" GPU has 24e9 bytes."""

    kind: str
    """torch's device type, such as `cuda`."""
    free: int
    """Bytes of device memory that the run may use."""
    host: int
    """Bytes of free host memory."""
    bf16: bool
    """bf16 is supported by the hardware, not emulated."""
    capability: tuple[int, int] | None = None
    """NVIDIA compute capability; None elsewhere and where it is unknown."""
    fast_precisions: frozenset[Precision] = frozenset()
    """Quantized precisions whose matmuls run faster in the storage dtype than after dequantizing."""
    preferred_precisions: frozenset[Precision] = frozenset()
    """Those of them whose matmuls run faster than with weights in the compute dtype too."""
    compiler: bool = False
    """torch compiles elementwise functions for it: see `compiled.fuses`."""
    expandable_segments: bool = False
    """torch's allocator grows its segments instead of adding new ones, and so wastes less."""
    spills: bool = False
    """The driver moves memory to the host, silently, where others report that the device is out of memory (Windows)."""

    @property
    def is_cpu(self) -> bool:
        """True on the CPU, whose host and device memory are the same."""
        return self.kind == "cpu"

    def reserve(self, activations: int) -> int:
        """Bytes to leave free for the driver, and for gaps between that many bytes of activations."""
        if self.is_cpu:
            return 0
        share = EXPANDABLE_GAPS if self.expandable_segments else SEGMENT_GAPS
        return (SPILLING_RESERVE if self.spills else RESERVE) + int(share * activations)


def query_device(device: torch.device) -> DeviceInfo:
    """Describe the device as it is now. Benchmarks its matmuls the first time, which takes some seconds on CUDA."""
    host = psutil.virtual_memory().available
    if device.type == "cpu":
        return DeviceInfo(kind="cpu", free=host, host=host, bf16=False)
    if device.type == "cuda":
        # Before free memory is read: the benchmark's memory stays in the allocator until it is emptied.
        fast = fast_precisions(device)
        torch.cuda.empty_cache()
        return DeviceInfo(
            kind="cuda",
            free=torch.cuda.mem_get_info(device)[0],
            host=host,
            # Turing emulates bf16, many times slower than it computes in float32.
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            capability=compute_capability(device),
            fast_precisions=fast.than_dequantized,
            preferred_precisions=fast.than_plain,
            compiler=has_compiler(device.type),
            expandable_segments=torch.version.hip is None and has_expandable_segments(),
            spills=sys.platform == "win32",
        )
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return DeviceInfo(kind="mps", free=free, host=host, bf16=True)
    return DeviceInfo(
        kind=device.type, free=torch.get_device_module(device).mem_get_info(device)[0], host=host, bf16=True
    )


def free_memory(device: torch.device) -> int:
    """Bytes of device memory that this process can still allocate: what the driver has free, and what torch's allocator
    holds without using it."""
    if device.type in ("cpu", "meta"):
        return psutil.virtual_memory().available
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    memory = torch.get_device_module(device)
    return memory.mem_get_info(device)[0] + memory.memory_reserved(device) - memory.memory_allocated(device)


def allocated_memory(device: torch.device) -> int:
    """Bytes of device memory that this process's tensors take; 0 on the CPU, where torch does not count them."""
    if device.type in ("cpu", "meta"):
        return 0
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return torch.get_device_module(device).memory_allocated(device)


def usable_memory(device: torch.device) -> int:
    """Bytes of device memory that this process has and can still get, by the driver and by the limit that torch was
    given."""
    usable = free_memory(device) + allocated_memory(device)
    if device.type != "cuda" or not hasattr(torch.cuda, "get_per_process_memory_fraction"):  # torch 2.7 has it
        return usable
    total = torch.cuda.get_device_properties(device).total_memory
    index = torch.cuda.current_device() if device.index is None else device.index  # It takes no device without one.
    return min(usable, int(torch.cuda.get_per_process_memory_fraction(index) * total))


def release_cached_memory(device: torch.device) -> None:
    """Give the memory that torch's allocator holds without using it back to the driver."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).empty_cache()


def release_host_cache() -> None:
    """Give the page-locked host memory that torch's allocator holds without using it back to the system, where this
    release of torch can."""
    if torch.accelerator.is_available() and hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()


def assumed_gpu(gigabytes: float, host_gigabytes: float | None = None) -> DeviceInfo:
    """Describe a CUDA GPU known by its free memory alone; free host memory defaults to this machine's."""
    host = psutil.virtual_memory().available if host_gigabytes is None else int(host_gigabytes * 1e9)
    free = int(gigabytes * 1e9)
    fast: frozenset[Precision] = frozenset(
        row.precision
        for row in FORMATS.values()
        if free < CONSUMER_LIMIT and row.precision and row.capability and row.capability <= ADA
    )
    return DeviceInfo(
        kind="cuda",
        free=free,
        host=host,
        bf16=True,
        capability=ADA if free < CONSUMER_LIMIT else None,
        fast_precisions=fast,
        preferred_precisions=fast,
        compiler=sys.platform == "linux",  # whose builds of torch bring triton along
        expandable_segments=has_expandable_segments(),
        spills=sys.platform == "win32",
    )


def default_device() -> torch.device:
    """Return the accelerator that torch finds (CUDA, ROCm, MPS, XPU), else the CPU."""
    # A CUDA build of torch names its accelerator on machines without a GPU too.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
