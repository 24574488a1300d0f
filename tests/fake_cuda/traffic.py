"""Work of kernels: floating-point operations, bytes moved, launches."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import bmm_flop, flop_registry, mm_flop

MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_int_mm", "_scaled_mm")
LOW_PRECISION = ("_int_mm", "_scaled_mm")
SMALL = 64
"""Matmuls with a side of at most this many are a LoRA's: the rank of up to four layers of one input."""
COPIES = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh")
"""Operations that are no views by their schema and yet launch no kernel."""


class Traffic:
    """Counts what kernels on the card do, by kind.

    Kinds are `low precision`, `matmul`, `lora`, `attention`, `attention backward`, `elementwise`, which is all the
    rest, and the names of compiled functions, which read their arguments and write their results once.
    """

    def __init__(self) -> None:
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def count(self, function: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """Count one operation, if it launches a kernel."""
        packet, name = function.overloadpacket, function.overloadpacket.__name__
        if name == "addmm_":
            packet, name = torch.ops.aten.addmm, "addmm"
        if name in COPIES or function.namespace == "prim" or _is_view(function) or not on_card((args, result)):
            return
        kind = "elementwise"
        if name in MATMULS:
            kind = "lora" if _is_small(name, args) else "low precision" if name in LOW_PRECISION else "matmul"
        elif "scaled_dot_product" in name:
            kind = "attention backward" if "backward" in name else "attention"
        if kind != "elementwise":
            self.flops[kind] += _flops(packet, name, args, kwargs, result)
        self.bytes[kind] += tensor_bytes(args) + tensor_bytes(kwargs) + tensor_bytes(result)
        self.kernels[kind] += 1

    def count_compiled(self, name: str, arguments: Any, result: Any) -> None:
        """Count one call of a compiled function."""
        self.bytes[name] += tensor_bytes(arguments) + tensor_bytes(result)
        self.kernels[name] += 1


def tensors_in(values: Any) -> list[torch.Tensor]:
    """All tensors, of any shape and dtype, in nested arguments or results. torch's pytree takes ten times as long."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors, of any shape and dtype, in a nest of values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(values))


def _flops(packet: Any, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    if name == "_int_mm":  # torch counts it as no matmul
        return mm_flop(args[0].shape, args[1].shape)
    if name == "baddbmm":
        return bmm_flop(args[1].shape, args[2].shape)
    return flop_registry[packet](*args, **kwargs, out_val=result)


def _is_small(name: str, args: tuple) -> bool:
    factors = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
    return min(side for factor in factors for side in factor.shape[-2:]) <= SMALL


@cache
def _is_view(function: Any) -> bool:
    """Tell whether an operation returns its argument's memory without writing to it."""
    aliases = [returned.alias_info for returned in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def on_card(values: Any) -> bool:
    """Tell whether any tensor in nested arguments or results is on the card."""
    return any(tensor.device.type == "cuda" for tensor in tensors_in(values))
