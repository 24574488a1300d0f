"""Quantized weights made from plain ones, one at a time while a model is loaded."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from ..config.settings import Precision
from ..errors import BadInput
from ..modules import blocks_of
from .formats import NF4_BLOCK, Quantization, QuantizedWeight

QUANTIZED = ("int8", "fp8", "nf4")
"""The precisions in which the large weights are codes."""


def quantize(weight: torch.Tensor, precision: Precision) -> QuantizedWeight:
    """A plain weight [out, in] in one of the `QUANTIZED` precisions: int8 and fp8 (e4m3) with a scale for each row,
    which maps its largest number to the largest code; nf4 in blocks of 64. Done on the CUDA device where there is one,
    the result is where the weight was. Raises BadInput for nf4 without bitsandbytes."""
    home = weight.device
    if torch.cuda.is_available():
        weight = weight.to("cuda", non_blocking=True)
    quantized, scale, quantization = _nf4(weight) if precision == "nf4" else _by_rows(weight, precision)
    return QuantizedWeight(quantized.to(home), scale.to(home), quantization)


def _nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Quantization]:
    functional = bitsandbytes("precision nf4").functional
    quantized, state = functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return quantized.reshape(len(weight), -1), state.absmax, Quantization("nf4")


def _by_rows(weight: torch.Tensor, precision: Precision) -> tuple[torch.Tensor, torch.Tensor, Quantization]:
    kind = torch.int8 if precision == "int8" else torch.float8_e4m3fn
    limit = 127 if precision == "int8" else torch.finfo(kind).max
    scale = (weight.abs().amax(1, keepdim=True).float() / limit).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = weight / scale
    quantized = (numbers.round_() if precision == "int8" else numbers).to(kind)
    return quantized, scale, Quantization("int8_tensorwise" if precision == "int8" else "float8_e4m3fn")


def large_weights(transformer: nn.Module) -> set[str]:
    """Names of the Linears whose weights are quantized: all inside the repeated blocks, modulation too."""
    blocks = set(blocks_of(transformer))
    return {
        f"{name}.{inner}"
        for name, block in transformer.named_modules()
        if block in blocks
        for inner, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }


def bitsandbytes(what: str) -> ModuleType:
    """The package, which is not among those that are always there. Raises BadInput saying that `what` needs it."""
    try:
        import bitsandbytes
        import bitsandbytes.functional
    except ImportError:
        raise BadInput(
            f"{what} needs the package bitsandbytes, which is not installed: `python -m pip install "
            '"bitsandbytes>=0.46"`.'
        ) from None
    return bitsandbytes
