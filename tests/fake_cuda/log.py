"""The log of a fake card: what lies on it, what was computed, and where the host waited for it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.memory.live_bytes import call_by_layout

from .traffic import Traffic, on_card, tensors_in

ATTENTION_BACKWARD = (
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
)
"""Kernels that sum the query's gradient in a float32 buffer (FlashAttention-2, arXiv:2307.08691), which their meta
functions do not allocate."""


class MemoryEvent(NamedTuple):
    """An event of the card's memory, for `allocator.replay`."""

    kind: Literal["allocate", "free", "record", "release", "mark"]
    """`record`: record_stream; `release`: empty_cache; `mark`: a point of interest."""
    storage: int = 0
    """Number of the allocation."""
    bytes: int = 0
    name: str = ""
    """Name of a mark."""


class Living:
    """Bytes of living tensors on one kind of device."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, size: int) -> None:
        """Count an allocation, or with a negative size a free."""
        self.now += size
        self.peak = max(self.peak, self.now)


class Log(TorchDispatchMode):
    """Counts living bytes, kernels and their work; notes allocations, and what makes the host wait.

    Raises torch.OutOfMemoryError beyond `limit` bytes, None for no limit. `refusal` gets the name of every operation
    with its arguments, and returns what the card has against it.
    """

    _logs: ClassVar[list[Log]] = []

    def __init__(self, limit: int | None, refusal: Callable[[str, tuple], str | None]) -> None:
        super().__init__()
        self.limit, self._refusal = limit, refusal
        self.device, self.host = Living(), Living()
        self.memory: list[MemoryEvent] = []
        self.syncs: list[str] = []
        """Waits of the host: blocking copies between devices, `.item()` and explicit synchronization."""
        self.waits: list[tuple[str, int, int]] = []
        """Waits of streams: (`stream`, waiting, other), (`event`, waiting, event), (`record`, stream, event)."""
        self.page_locked: list[int] = []
        """Bytes of each page-locked host buffer."""
        self.traffic = Traffic()
        self.calls: Counter[str] = Counter()
        """Calls of torch.cuda's functions that change no tensor."""
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._allocations = 0
        self._fused = 0

    @classmethod
    def current(cls) -> Log:
        """Return the log of the innermost fake card."""
        return cls._logs[-1]

    def __enter__(self) -> Log:
        self._logs.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._logs.remove(self)

    def mark(self, name: str) -> None:
        """Mark this moment among the memory events, and start a new peak."""
        self.memory.append(MemoryEvent("mark", name=name))
        for living in (self.device, self.host):
            living.peak = living.now

    @contextmanager
    def fused(self) -> Iterator[None]:
        """Context in which operations make no temporaries and no traffic of their own: one kernel does them all. What
        lives at its end is counted there."""
        self._fused += 1
        try:
            yield
        finally:
            self._fused -= 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if (reason := self._refusal(name, args)) is not None:
            raise RuntimeError(reason)
        if name == "record_stream":
            self.record_stream(args[0])
            return None
        self._note_sync(name, args, kwargs)
        if name == "_local_scalar_dense" and not _is_known(args[0]):
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point * 0.5 + 0.5
        result = call_by_layout(function, args, kwargs) if on_card(args) else function(*args, **kwargs)
        if not self._fused:
            self.traffic.count(function, args, kwargs, result)
            self.note(result)
            if name in ATTENTION_BACKWARD:
                self._pass_through(args[1].numel() * torch.float32.itemsize)
        return result

    def note(self, result: Any) -> None:
        """Count the tensors of a result, of any shape and dtype, that are new. Raises torch.OutOfMemoryError."""
        for tensor in tensors_in(result):
            if not isinstance(tensor, FakeTensor) or tensor.device.type not in ("cuda", "cpu"):
                continue
            storage = tensor.untyped_storage()
            if storage in self._numbers:
                continue
            self._allocations += 1
            self._numbers[storage] = self._allocations
            on_device = tensor.device.type == "cuda"
            size = storage.nbytes()
            if on_device and self.limit is not None and self.device.now + size > self.limit:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size} bytes beside {self.device.now} of {self.limit}."
                )
            living = self.device if on_device else self.host
            living.add(size)
            if on_device:
                self.memory.append(MemoryEvent("allocate", self._allocations, size))
            weakref.finalize(storage, self._free, living, self._allocations, size)

    def _pass_through(self, size: int) -> None:
        """Count a buffer that lives within a kernel's call."""
        self._allocations += 1
        self.memory.append(MemoryEvent("allocate", self._allocations, size))
        self.device.add(size)
        self._free(self.device, self._allocations, size)

    def empty_cache(self) -> None:
        """Note that the allocator gives back what is unused."""
        self.calls["empty_cache"] += 1
        self.memory.append(MemoryEvent("release"))

    def record_stream(self, tensor: torch.Tensor) -> None:
        """Note that another stream uses a tensor, of any shape and dtype."""
        self.memory.append(MemoryEvent("record", self._numbers.get(tensor.untyped_storage(), 0)))

    def _free(self, living: Living, number: int, size: int) -> None:
        living.add(-size)
        if living is self.device:
            self.memory.append(MemoryEvent("free", number, size))

    def _note_sync(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in ("_local_scalar_dense", "nonzero"):
            if args[0].device.type == "cuda":
                self.syncs.append(name)
            return
        if name == "_to_copy":
            source, target, blocking = args[0].device, kwargs.get("device"), not kwargs.get("non_blocking")
        elif name == "copy_":
            source, target = args[1].device, args[0].device
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            return
        if target is not None and source.type != (other := torch.device(target).type) and blocking:
            self.syncs.append(f"{source.type} to {other}: {list(args[0].shape)} {args[0].dtype}")


def _is_known(tensor: torch.Tensor) -> bool:
    """Tell whether a fake tensor has a value: a constant on the CPU, such as an optimizer's step."""
    return tensor.device.type == "cpu" and getattr(tensor, "constant", None) is not None
