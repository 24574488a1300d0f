"""A fake CUDA card: FakeTensors on device `cuda`, under CUDA's own dispatch and autocast, on torch's CPU build.

`shim.load()` must have run before torch was imported, so that a test starts a process of its own for it. Then
`with fake_cuda(Card(capability=(8, 9))) as log:` runs any code on fake tensors, whose shapes, dtypes and devices are
true and whose values are not there. Tensors of two devices in one operation raise, the card refuses what a card of its
capability refuses, and `log` has what was allocated, computed and waited for. Functions compiled with torch.compile
count as one kernel each, without temporaries.

What it cannot show is values, time, and the order of work on several streams.
"""

from __future__ import annotations

import gc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo.utils  # looks for a true triton when it is imported
import torch.amp.autocast_mode
import torch.cuda.amp.common
import torch.utils._device
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from trainer.compiled import assume_compiler
from trainer.memory.live_bytes import call_by_layout

from .log import Log
from .streams import Event, Runtime, Stream, current_stream, stream

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""NVIDIA compute capabilities of Turing, A100, Ampere, Ada, Hopper and Blackwell (RTX 50xx)."""
CUDNN_ATTENTION = ((9, 0), (10, 0))
"""Capabilities whose cuDNN attention is trusted. Elsewhere there are reports of wrong gradients (pytorch#162073)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card that refuses what a card of its capability refuses."""

    capability: tuple[int, int] = (8, 9)
    memory: int = 24_000_000_000
    """Bytes that are free before anything is loaded."""

    def refusal(self, name: str, args: tuple) -> str | None:
        """Say why the card cannot run an aten operation; None where it can."""
        if name == "_scaled_mm" and self.capability < (8, 9):
            return "torch._scaled_mm is only supported on CUDA devices with compute capability >= 8.9"
        if name == "_int_mm":
            (rows, inner), columns = args[0].shape, args[1].shape[1]
            if rows <= 16 or inner % 8 or columns % 8:
                return f"_int_mm: {rows} x {inner} by {columns}: needs more than 16 rows and sides divisible by 8"
        if "cudnn_attention" in name and self.capability not in CUDNN_ATTENTION:
            return f"cuDNN attention is not trusted on capability {self.capability}"
        return None

    def attention_backend(self, query: torch.Tensor, mask: torch.Tensor | None) -> SDPBackend:
        """Choose the attention kernel as torch does for `query` and `mask`, [B, H, L, D] and broadcastable, of a float
        dtype: the first by priority that is on and can do it. Raises RuntimeError for cuDNN's where it is known to be
        wrong."""
        flash = mask is None and query.dtype != torch.float32 and query.shape[-1] <= 256 and self.capability >= (8, 0)
        for backend in map(SDPBackend, _cur_sdpa_kernel_backends(with_priority=True)):
            if backend == SDPBackend.CUDNN_ATTENTION and query.dtype != torch.float32:
                if mask is not None or query.shape[1] == 1:
                    raise RuntimeError("cuDNN attention gives NaN with some masks, and wrong gradients with one head")
                return backend
            if backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
                return backend
            if backend == SDPBackend.FLASH_ATTENTION and flash:
                return backend
        raise RuntimeError("No available kernel for scaled_dot_product_attention")


@contextmanager
def fake_cuda(card: Card, limit: int | None = None, compiler: bool = True) -> Iterator[Log]:
    """Context in which torch computes on a fake card. Beyond `limit` bytes, None for no limit, it is out of memory.
    `compiler`: triton is there."""
    log = Log(limit, card.refusal)
    with ExitStack() as stack:
        for owner, replacements in _replacements(card, log):
            for name, new in replacements.items():
                stack.enter_context(patch.object(owner, name, new))
        if compiler:
            stack.enter_context(patch.dict(sys.modules, triton=_triton()))
            stack.enter_context(assume_compiler(lambda function, args: _fused(function, *args)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # The dispatch modes are those of this thread; a backward pass must not leave it.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(log)
        yield log
        gc.collect()  # finalizers of page-locked memory ask the stand-ins


def _replacements(card: Card, log: Log) -> list[tuple[Any, dict[str, Any]]]:
    """Stand-ins by the module or class that they are set on."""
    torch.utils._device._device_constructors()  # is cached, and must know the real torch.empty
    major, minor = card.capability
    properties = SimpleNamespace(name="fake", total_memory=card.memory, major=major, minor=minor)
    cuda = {
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": current_stream,
        "default_stream": current_stream,
        "synchronize": lambda *_: log.syncs.append("torch.cuda.synchronize"),
        "empty_cache": log.empty_cache,
        "cudart": Runtime,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: card.capability,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or card.capability >= (8, 0),
        "mem_get_info": lambda *_: (card.memory - log.device.now, card.memory),
        "memory_allocated": lambda *_: log.device.now,
        "memory_reserved": lambda *_: log.device.now,
        "max_memory_allocated": lambda *_: log.device.peak,
        "get_per_process_memory_fraction": lambda *device: _fraction(log.limit or card.memory, card, *device),
    }
    return [
        (torch.cuda, cuda),
        (torch, {"empty": partial(_empty, torch.empty), "compile": _compile}),
        (torch.nn.functional, {"scaled_dot_product_attention": _attention_of(card)}),
        (
            torch.Tensor,
            {
                "pin_memory": lambda self, *_: self,
                "data_ptr": _with_fakes(torch.Tensor.data_ptr, lambda tensor: 4096),
                "record_stream": lambda self, stream: log.record_stream(self),
            },
        ),
        (FakeTensor, {"data": property(lambda self: torch.Tensor.data.__get__(self), _set_data)}),
        (torch.nn.Module, {"_apply": _apply}),
        (torch.amp.autocast_mode, {"is_autocast_available": lambda *_: True}),
        (torch.cuda.amp.common, {"amp_definitely_not_available": lambda: False}),
    ]


def _fraction(limit: int, card: Card, device: torch.device | int | None = None) -> float:
    if isinstance(device, torch.device) and device.index is None:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
    return limit / card.memory


def _with_fakes(real: Callable[[torch.Tensor], Any], fake: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    def method(self: torch.Tensor) -> Any:
        return fake(self) if isinstance(self, FakeTensor) else real(self)

    return method


def _empty(real: Callable[..., torch.Tensor], *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
    """torch.empty without torch's pinned allocator, whose sizes are noted."""
    tensor = real(*args, **kwargs)
    if pin_memory:
        Log.current().page_locked.append(tensor.numel() * tensor.element_size())
    return tensor


def _compile(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """torch.compile, whose functions count as one kernel. Methods of modules, whole blocks, run as they are."""
    if function is None:
        return _compile
    if isinstance(getattr(function, "__self__", None), torch.nn.Module):
        return function

    return wraps(function)(partial(_fused, function))


def _fused(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function as one kernel that reads its arguments and writes its results."""
    log = Log.current()
    with log.fused():
        result = function(*args, **kwargs) if kwargs else call_by_layout(function, args)
    log.traffic.count_compiled(function.__name__, (args, kwargs), result)
    log.note(result)
    return result


def _attention_of(card: Card) -> Callable[..., torch.Tensor]:
    """scaled_dot_product_attention by the kernel that the card takes; torch's own dispatch knows no card here."""
    on_cpu, aten = torch.nn.functional.scaled_dot_product_attention, torch.ops.aten

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if query.device.type == "cpu":
            return on_cpu(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (part.to(torch.get_autocast_dtype("cuda")) for part in (query, key, value))
        if enable_gqa:  # as torch's math kernel does it; its fused kernels index instead
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        inputs, rest = (query, key, value), (dropout_p, is_causal)
        backend = card.attention_backend(query, attn_mask)
        if backend == SDPBackend.FLASH_ATTENTION:
            return aten._scaled_dot_product_flash_attention(*inputs, *rest, scale=scale)[0]
        if backend == SDPBackend.CUDNN_ATTENTION:
            return aten._scaled_dot_product_cudnn_attention(*inputs, None, True, *rest, scale=scale)[0]
        if backend == SDPBackend.EFFICIENT_ATTENTION:
            return aten._scaled_dot_product_efficient_attention(*inputs, attn_mask, True, *rest, scale=scale)[0]
        return aten._scaled_dot_product_attention_math(*inputs, attn_mask, *rest, scale=scale)[0]

    return attention


def _set_data(self: Any, data: Any) -> None:
    """`tensor.data = data` over devices, which a FakeTensor does not follow by itself."""
    torch.Tensor.data.__set__(self, data)
    self.fake_device = data.fake_device


def _apply(self: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """nn.Module._apply, which swaps FakeTensors with the results instead of setting their data."""
    for child in self.children():
        child._apply(function)
    with torch.no_grad():
        for parameter in self.parameters(recurse=False):
            for tensor in (parameter, parameter.grad):
                if tensor is not None and (new := function(tensor)) is not tensor:
                    tensor.data = new
        for name, buffer in self.named_buffers(recurse=False):
            self._buffers[name] = function(buffer)
    return self


def _triton() -> ModuleType:
    """An empty module, by which code sees that triton is there."""
    module = ModuleType("triton")
    module.__spec__ = importlib.machinery.ModuleSpec("triton", None)
    return module
