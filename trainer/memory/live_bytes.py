"""Counting the bytes of living tensors while code runs on tensors without storage (FakeTensor) on the CPU, as a GPU
would hold them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of living tensors, except given ones."""

    def __init__(self, others: Sequence[torch.Tensor] = ()) -> None:
        """`others`: tensors of any shape and dtype that do not count."""
        super().__init__()
        self.now = self.peak = 0
        self._paused = False
        self._ends: weakref.WeakKeyDictionary[torch.UntypedStorage, weakref.finalize] = weakref.WeakKeyDictionary()
        self._others = weakref.WeakSet(tensor.untyped_storage() for tensor in others)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._paused:
            self._count(result)
        if function is ATTENTION_BACKWARD:
            # GPU kernels sum the query's gradient in a float32 buffer (FlashAttention-2, arXiv:2307.08691).
            self.peak = max(self.peak, self.now + args[1].numel() * torch.float32.itemsize)
        return result

    def forget(self, tensor: torch.Tensor) -> None:
        """Stop counting a tensor, of any shape and dtype, that lives on."""
        storage = tensor.untyped_storage()
        if (end := self._ends.pop(storage, None)) is not None and end.detach():
            self.now -= storage.nbytes()
        self._others.add(storage)

    def as_one_kernel(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function as compiled to one kernel, whose results alone take memory: for `assume_compiler`."""
        self._paused = True
        try:
            result = call_by_layout(function, args)
        finally:
            self._paused = False
        self._count(result)
        return result

    def _count(self, result: Any) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._ends and storage not in self._others:
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    self._ends[storage] = weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.now -= size


def call_by_layout(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function of tensors without values, of any shape and dtype.

    Its results' layouts are remembered for the next call with arguments of the same, which makes new results from them:
    of all operations of a step, those in compiled functions are most.
    """
    leaves, structure = tree_flatten(args)
    key = function, str(structure), *map(_layout, leaves)
    if key in _RESULTS:
        return tree_map(_empty, _RESULTS[key])
    result = function(*args)
    if not _storages(result) & _storages(args):
        _RESULTS[key] = tree_map(_layout, result)
    return result


@dataclass(frozen=True, slots=True)
class _Layout:
    """Shape, strides, dtype and device of a tensor without storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _layout(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return _Layout(value.shape, value.stride(), value.dtype, value.device)


def _storages(tensors: Any) -> set[torch.UntypedStorage]:
    return {tensor.untyped_storage() for tensor in tree_leaves(tensors) if isinstance(tensor, torch.Tensor)}


def _empty(value: Any) -> Any:
    if not isinstance(value, _Layout):
        return value
    return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=value.device)


_RESULTS: dict[tuple, Any] = {}


FLOAT32_ON_CUDA = frozenset(
    {
        torch.nn.functional.layer_norm,
        torch.nn.functional.rms_norm,
        torch.nn.functional.group_norm,
        torch.Tensor.pow,
        torch.Tensor.__pow__,
        torch.Tensor.sum,
        torch.Tensor.softmax,
        torch.pow,
        torch.rsqrt,
        torch.sum,
        torch.softmax,
    }
)
"""Functions of the blocks and the loss that CUDA's autocast runs in float32 and the CPU's does not. Source: torch's
ATen/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE."""


class CudaAutocast(TorchFunctionMode):
    """Within the CPU's autocast, casts as CUDA's does. Not in a backward pass that is started inside: torch suspends
    the mode there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FLOAT32_ON_CUDA:
            args, kwargs = tree_map(_to_float32, (args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
