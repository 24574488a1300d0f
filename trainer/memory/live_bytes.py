"""Counting the bytes of living tensors while code runs on tensors without storage (the meta device, or FakeTensor), as
a GPU would hold them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CONVOLUTION_WORKSPACE = 1.05
"""Bytes of cuDNN's workspace for a convolution, in units of what it reads and writes, both of which it makes
channels-last. With 1.0 the peaks of both published VAEs at 1024 x 1024 are counted as an H200 allocates them: 1.62 and
2.55 GB to encode and decode with Kontext's, 2.84 and 4.44 with Qwen's."""


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
        result = call_by_layout(function, args, kwargs)
        if not self._paused:
            self._count(result)
        if function is ATTENTION_BACKWARD:
            # GPU kernels sum the query's gradient in a float32 buffer (FlashAttention-2, arXiv:2307.08691).
            self.peak = max(self.peak, self.now + args[1].numel() * torch.float32.itemsize)
        if function is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + int(CONVOLUTION_WORKSPACE * (args[0].nbytes + result.nbytes)))
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


def call_by_layout(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call a function of tensors without values, of any shape and dtype.

    The layouts of its results are remembered, and the next call with arguments of the same layouts makes new results
    from them: blocks repeat each other, and torch works out a layout in Python, which takes a millisecond. Results that
    share memory with an argument are not remembered.
    """
    kwargs = kwargs or {}
    key = function, _key(args), _key(kwargs)
    remembered = _RESULTS.get(key)
    if remembered is not None:
        return _empty(remembered)
    result = function(*args, **kwargs)
    if key not in _RESULTS:
        shared = _storages(result) & _storages((args, kwargs))
        _RESULTS[key] = None if shared else _layout(result)
    return result


class _Layout(NamedTuple):
    """Shape, strides, dtype and device of a tensor without storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _key(value: Any) -> Any:
    """A value that is equal for equal arguments only: 1, 1.0 and True are three, with results of three dtypes."""
    if isinstance(value, torch.Tensor):
        return _layout(value)
    if isinstance(value, (list, tuple)):  # torch's pytree does this too, at three times the cost of the rest
        return type(value), *map(_key, value)
    if isinstance(value, Mapping):
        return tuple((name, _key(item)) for name, item in value.items())
    return type(value), value


def _layout(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Layout(value.shape, value.stride(), value.dtype, value.device)
    return type(value)(map(_layout, value)) if isinstance(value, (list, tuple)) else value


def _storages(tensors: Any) -> set[torch.UntypedStorage]:
    return {tensor.untyped_storage() for tensor in tree_leaves(tensors) if isinstance(tensor, torch.Tensor)}


def _empty(value: Any) -> Any:
    if isinstance(value, _Layout):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=value.device)
    return type(value)(map(_empty, value)) if isinstance(value, (list, tuple)) else value


_RESULTS: dict[tuple, Any] = {}
"""Layouts by function and arguments; None where the results share memory with an argument."""


class MetaAttention(TorchFunctionMode):
    """Computes attention on the meta device by a fused kernel, as every card does; torch has none for that device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return function(*args, **kwargs)


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` of [B, H, L, D] tensors of one float dtype; without grouped queries."""
    assert not enable_gqa
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


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
