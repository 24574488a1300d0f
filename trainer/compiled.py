"""Elementwise functions that run as few kernels as possible: compiled where a compiler for the device is.

Whole blocks need not be compiled for it, so that LoRA layers, checkpointing and block streaming stay outside the
compiler, and a new image size compiles little.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")
Runner = Callable[[Callable[..., Any], tuple[Any, ...]], Any]

MIN_ELEMENTS = 2**20
"""Least elements of a tensor whose functions are compiled. A judgement: a kernel for fewer takes some microseconds
however it is written, and a small model should not wait for a compiler."""


MIN_DYNAMIC = 32
"""Sizes above it are compiled for any size. Below lie batch sizes and ranks, which do not change in a run."""


MAX_VARIANTS = 32
"""Most compiled variants of one function or class of blocks. A judgement: widths, batch sizes and optional inputs of
one run stay below."""


_assumed: list[Runner | None] = []
_failed: list[str] = []


def has_compiler(kind: str) -> bool:
    """Tell whether functions are compiled on devices of this kind, torch's device type: on CUDA, with triton installed,
    until it fails."""
    return kind == "cuda" and not _failed and ("triton" in sys.modules or _is_installed("triton"))


@lru_cache(maxsize=1)
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def fuses(tensor: torch.Tensor) -> bool:
    """Tell whether functions that take this tensor, of any shape and dtype, run compiled: where it is large and its
    device has a compiler.

    They do not under autocast, which casts single operations, nor inside a compiled block, which is compiled as a
    whole.
    """
    kind = tensor.device.type
    if torch.compiler.is_compiling() or (kind != "meta" and torch.is_autocast_enabled(kind)):
        return False
    if _assumed:
        return _assumed[-1] is not None
    return tensor.numel() >= MIN_ELEMENTS and has_compiler(kind)


@contextmanager
def assume_compiler(run: Runner | None) -> Iterator[None]:
    """Context in which every device has a compiler, and `run(function, args)` stands for a compiled call of it: for
    estimates and counts on tensors without storage. None: no device has one."""
    _assumed.append(run)
    try:
        yield
    finally:
        _assumed.pop()


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function whose first argument is a tensor, or a list that ends with the largest, at its first call with
    one that `fuses` accepts; other calls run it as it is.

    It is called without gradients and changes none of its arguments. Tokens, the second dimension of [B, L, ...] and
    the first of [rows, columns], may change from call to call; other sizes are compiled as constants. Where the
    compiler fails, nothing is compiled from then on.
    """
    variant: list[Callable[..., T]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        first = cast("torch.Tensor | list[torch.Tensor]", args[0])
        if not fuses(first[-1] if isinstance(first, list) else first):
            return function(*args, **kwargs)
        if _assumed and (run := _assumed[-1]) is not None:
            return run(function, args)
        if not variant:
            allow_variants()
            variant.append(torch.compile(function, dynamic=False))  # not before: importing the compiler takes seconds
        try:
            return variant[0](*map(_prepared, args), **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Compilers, drivers and missing C++ tools raise errors of their own.
            _give_up(error)
            return function(*args, **kwargs)

    return call


def allow_variants() -> None:
    """Let torch compile `MAX_VARIANTS` variants of a function or block; its own limit is 8."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(MAX_VARIANTS, getattr(config, limit)))


def _prepared(value: Any) -> Any:
    """A tensor of any shape and dtype, or a list of them, dense and no view of another tensor: else each size of the
    tensor that it is a part of would be compiled."""
    if isinstance(value, list):
        return [_prepared(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.contiguous().view(value.shape).data
    dimension = 1 if value.ndim > 2 else 0
    if value.ndim > 1 and value.shape[dimension] > MIN_DYNAMIC:
        torch._dynamo.maybe_mark_dynamic(value, dimension)
    return value


def _give_up(error: Exception) -> None:
    """Compile nothing from now on, and say so once."""
    if not _failed:
        _failed.append(str(error))
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"The compiler of this torch does not work here ({first}). Training goes on without it, which is correct "
            "but slower.",
            stacklevel=3,
        )
