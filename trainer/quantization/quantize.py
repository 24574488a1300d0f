"""Quantizes plain weights, one at a time while a model is loaded."""

from __future__ import annotations

import torch
from torch import nn

from ..config.packages import require_package
from ..config.settings import Precision
from ..modules import blocks_of
from .formats import Quantization, QuantizedWeight, format_of


def quantize(weight: torch.Tensor, precision: Precision, device: torch.device | str | None = None) -> QuantizedWeight:
    """Quantize a plain weight [out, in] float for a quantized `precision` setting.

    Runs on `device`, by default, for a weight in host memory, on the current CUDA device where there is one; the result
    is on the weight's own. Raises BadInput when the format's package is not installed, ValueError for fp32 and bf16.
    """
    row = format_of(precision)
    if row is None or row.quantize is None:
        raise ValueError(f"precision {precision} is not a quantized one")
    if row.package:
        require_package(row.package, f"precision {precision}")
    if device is None and weight.device.type == "cpu" and torch.cuda.is_available():
        device = "cuda"
    quantized, scale = row.quantize(weight if device is None else weight.to(device, non_blocking=True))
    return QuantizedWeight(quantized.to(weight.device), scale.to(weight.device), Quantization(row.name))


def large_weights(transformer: nn.Module) -> set[str]:
    """Names of the Linears that a quantized precision quantizes: all inside the repeated blocks, modulation too."""
    blocks = set(blocks_of(transformer))
    return {
        f"{name}.{inner}"
        for name, block in transformer.named_modules()
        if block in blocks
        for inner, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }
