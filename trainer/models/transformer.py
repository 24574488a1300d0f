"""Loads the transformer from a single file, as ComfyUI's users have it, or from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.settings import Precision
from ..errors import BadInput
from ..families.registry import find_family, find_variant
from ..single_file.detect import describe_other, file_name_warnings
from ..single_file.header import ShardedWeights, open_shards, open_weights
from ..single_file.key_mapping import Layout, same_names
from ..single_file.load_module import (
    ON_CPU,
    ModuleFile,
    WeightSink,
    check_keys,
    fill_module,
    open_module,
    select_module,
)

if TYPE_CHECKING:
    from .family import Family


WEIGHTS = "diffusion_pytorch_model"
"""File name, without extension, of the weights in diffusers' transformer folder."""


PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
"""Prefixes of the transformer's tensors in checkpoints and in files of other programs."""


def open_transformer(path: Path) -> ModuleFile:
    """Read a file's header with its quantization. Raises BadInput for an unreadable file or an unsupported
    quantization."""
    return open_module(path, "transformer", PREFIXES)


def check_single_file(family: Family, path: Path) -> None:
    """Check from the header that `path` is a complete transformer of this family. Raises BadInput if it is not."""
    _empty_for(family, open_transformer(path), None)


def file_warnings(path: Path, base_model: str) -> list[str]:
    """Reasons to doubt that the file holds the weights of `base_model`, one sentence each."""
    info, variant = find_family(base_model), find_variant(base_model)
    file = open_weights(path, "transformer")
    if variant.marker and any(name.endswith(variant.marker) for name in file.tensors):
        return []
    hint, lookalikes = variant.name_hint or info.name_hint, variant.lookalike_names or info.lookalike_names
    return file_name_warnings(path, file.metadata, base_model, hint, lookalikes)


def weights_files(folder: Path) -> list[Path]:
    """The weights file of a folder with diffusers' names, or its shards. Raises BadInput for one that is missing or
    damaged."""
    weights = open_shards(folder, WEIGHTS, "transformer")
    return [shard.path for shard in (weights.shards if isinstance(weights, ShardedWeights) else (weights,))]


def load_single_file(
    family: Family,
    path: Path,
    dtype: torch.dtype,
    config: Mapping[str, Any] | None = None,
    precision: Precision | None = None,
    sink: WeightSink = ON_CPU,
) -> nn.Module:
    """Load the transformer: plain weights in `dtype`, or the large ones in `precision` if that is a quantized one;
    quantized weights as they are stored.

    Tensors are read one at a time and go where `sink` says, so host memory exceeds what stays there by one tensor.
    `config` is the diffusers config; None: it follows from the shapes. Raises BadInput, with every key checked, if the
    file is not this family's.
    """
    source = open_transformer(path)
    transformer, layout = _empty_for(family, source, config)
    fill_module(transformer, layout, source, dtype, precision, sink)
    return transformer


def load_folder(
    family: Family,
    folder: Path,
    dtype: torch.dtype,
    config: Mapping[str, Any],
    precision: Precision | None = None,
    sink: WeightSink = ON_CPU,
) -> nn.Module:
    """Load the transformer as `load_single_file` does, from a folder with diffusers' names and this config."""
    transformer = family.empty_transformer(config)
    layout, source = same_names(transformer), select_module(open_shards(folder, WEIGHTS, "transformer"), "transformer")
    check_keys(transformer, layout, source, f"transformer of {family.info.name}")
    fill_module(transformer, layout, source, dtype, precision, sink)
    return transformer


def _empty_for(family: Family, source: ModuleFile, config: Mapping[str, Any] | None) -> tuple[nn.Module, Layout]:
    """The transformer without weights and the file's layout, with every key and shape checked."""
    path, shapes = source.file.path, source.shapes
    other = describe_other(source.tensors, family.info.transformer, source.file.tensors) or family.other_model(shapes)
    if other:
        raise BadInput(f"{path} is not a transformer of {family.variant.name}: it is {other}.")
    try:
        transformer = family.empty_transformer(config or family.transformer_config(shapes))
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError):
        raise BadInput(
            f"{path} is not a transformer of {family.info.name}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    layout = family.layout(transformer)
    check_keys(transformer, layout, source, f"transformer of {family.info.name}", {family.variant.marker})
    return transformer, layout
