"""Bytes of a transformer's weights, part by part, counted without loading them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..config.settings import Precision
from ..models.transformer import open_transformer
from ..modules import blocks_of, own_parameters
from ..quantization.formats import FORMATS, format_of

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of a transformer's weights by part."""

    around: int
    """Bytes outside the blocks, without modulation."""
    blocks: tuple[int, ...]
    """Bytes of each block, without modulation."""
    modulation: tuple[int, ...]
    """Bytes of each block's modulation, and last those of the modulation behind the blocks."""
    block_kinds: tuple[str, ...]
    """Class of each block."""

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return self.around + sum(self.blocks) + sum(self.modulation)


def weight_bytes(
    model: EditModel, transformer: torch.nn.Module, precision: Precision, dtype: torch.dtype
) -> WeightBytes:
    """Count the bytes of `model`'s weights: large ones in `precision`, those of a quantized file as stored, the others
    in `dtype`. `transformer` is the model's, on the meta device."""
    stored, made = _stored_bits(model, transformer), format_of(precision)
    blocks = blocks_of(transformer)
    place = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    is_modulation = re.compile(model.family.modulation_layers())
    around, of_blocks, modulation = 0, [0] * len(blocks), [0] * (len(blocks) + 1)
    for name, module, parameters in _with_parameters(transformer):
        index = place.get(id(module), len(blocks))
        is_large = isinstance(module, torch.nn.Linear) and index < len(blocks)
        size = 0
        for leaf, parameter in parameters.items():
            if leaf == "weight" and name in stored:
                size += int(parameter.numel() * stored[name] / 8)
            elif leaf == "weight" and is_large and made:
                size += made.weight_bytes(parameter)
            else:
                size += parameter.numel() * dtype.itemsize
        if is_modulation.fullmatch(name):
            modulation[index] += size
        elif index < len(blocks):
            of_blocks[index] += size
        else:
            around += size
    kinds = tuple(type(block).__name__ for block in blocks)
    return WeightBytes(around, tuple(of_blocks), tuple(modulation), kinds)


KEPT_TRANSFORMERS = 4
"""Empty transformers that are kept. A judgement: programs plan for one or two models."""


@lru_cache(maxsize=KEPT_TRANSFORMERS)
def linears_of(transformer: torch.nn.Module) -> Mapping[str, torch.nn.Linear]:
    """Linears of an empty transformer by name. Kept, because a plan asks often and looking takes a tenth of a
    second."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}


@lru_cache(maxsize=KEPT_TRANSFORMERS)
def _with_parameters(
    transformer: torch.nn.Module,
) -> tuple[tuple[str, torch.nn.Module, Mapping[str, torch.nn.Parameter]], ...]:
    """Modules of an empty transformer that have parameters of their own: name, module, parameters by name."""
    modules = dict(transformer.named_modules())
    return tuple((name, modules[name], parameters) for name, parameters in own_parameters(transformer))


def _stored_bits(model: EditModel, transformer: torch.nn.Module) -> Mapping[str, float]:
    """Bits per value of the weights that a quantized file stores, by diffusers' module name."""
    file = model.weights or model.files.transformer
    if file is None:
        return {}
    source = open_transformer(file)
    if not source.quantizations:
        return {}
    return {
        module: FORMATS[source.quantizations[fused.stored].format].bits
        for fused in model.family.layout(transformer)
        if fused.stored in source.quantizations
        for module in fused.modules
    }
