"""Elementwise functions that run as few kernels as possible: compiled where a compiler for the device is.

Whole blocks need not be compiled for it, so that LoRA layers, checkpointing and block streaming stay outside the
compiler, and a new image size compiles little.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")
Runner = Callable[[Callable[..., Any], tuple[Any, ...]], Any]

_assumed: list[Runner] = []


def has_compiler(kind: str) -> bool:
    """Tell whether functions are compiled on devices of this kind, torch's device type."""
    return kind == "cuda" and ("triton" in sys.modules or _is_installed("triton"))


@lru_cache(maxsize=1)
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def fuses(tensor: torch.Tensor) -> bool:
    """Tell whether functions of this tensor (any shape and dtype) are compiled: on CUDA, with triton installed.

    Not under autocast, whose casts are those of single operations, nor inside a compiled block, which is compiled as a
    whole.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(tensor.device.type):
        return False
    return bool(_assumed) or has_compiler(tensor.device.type)


@contextmanager
def assume_compiler(run: Runner) -> Iterator[None]:
    """Context in which every device has a compiler, and `run(function, args)` stands for a compiled call of it: for
    estimates and counts on tensors without storage."""
    _assumed.append(run)
    try:
        yield
    finally:
        _assumed.pop()


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function whose first argument is a tensor, at its first call with one that `fuses` accepts; other calls
    run it as it is.

    It is called without gradients and may write into tensors that it is given. Dimensions that change from call to call
    are compiled for any size.
    """
    variant: list[Callable[P, T]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not fuses(cast("torch.Tensor", args[0])):
            return function(*args, **kwargs)
        if _assumed:
            return _assumed[-1](function, args)
        if not variant:
            variant.append(torch.compile(function))  # not before: importing the compiler takes seconds
        return variant[0](*args, **kwargs)

    return call
