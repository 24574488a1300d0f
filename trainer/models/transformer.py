"""The transformer from its files: a single one, as ComfyUI's users have it, or a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.settings import Precision
from ..errors import BadInput
from ..single_file.detect import describe_other, warnings_about
from ..single_file.header import open_shards, open_weights
from ..single_file.key_mapping import Layout, same_names
from ..single_file.load_module import ModuleFile, check_keys, fill_module, module_of, open_module
from . import family_class

if TYPE_CHECKING:
    from .family import Family


WEIGHTS = "diffusion_pytorch_model"
"""diffusers' name of the weights in a part's folder."""


PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")


def open_transformer(path: Path) -> ModuleFile:
    """Read the header and what it says of quantization. Raises BadInput for a file that cannot be read, and for a
    format of quantization that cannot, by its name."""
    return open_module(path, "transformer", PREFIXES)


def check_single_file(family: Family, path: Path) -> None:
    """Raises BadInput, from the header alone, when `path` is not a whole transformer of this family."""
    _empty_for(family, open_transformer(path), None)


def file_warnings(path: Path, base_model: str) -> list[str]:
    """What in the file speaks against its being the weights of `base_model`, in sentences."""
    family = family_class(base_model)
    file = open_weights(path, "transformer")
    return warnings_about(path, file.metadata, base_model, family.name_hint, family.lookalike_names)


def load_single_file(
    family: Family,
    path: Path,
    dtype: torch.dtype,
    config: Mapping[str, Any] | None = None,
    precision: Precision | None = None,
) -> nn.Module:
    """The transformer on the CPU: plain weights in `dtype`, or the large ones in `precision` when that is a quantized
    one; quantized weights as they are stored.

    Read tensor by tensor: host memory beyond the model's own stays at one tensor. `config` is diffusers', where it is
    known; else it follows from the shapes. Raises BadInput when the file is not this model's, with every key checked.
    """
    source = open_transformer(path)
    transformer, layout = _empty_for(family, source, config)
    fill_module(transformer, layout, source, dtype, precision)
    return transformer


def load_folder(
    family: Family, folder: Path, dtype: torch.dtype, config: Mapping[str, Any], precision: Precision | None = None
) -> nn.Module:
    """The same from a folder with weights under diffusers' own names and this config."""
    transformer = family.empty_transformer(config)
    layout, source = same_names(transformer), module_of(open_shards(folder, WEIGHTS, "transformer"), "transformer")
    check_keys(transformer, layout, source, f"transformer of {family.name}")
    fill_module(transformer, layout, source, dtype, precision)
    return transformer


def _empty_for(family: Family, source: ModuleFile, config: Mapping[str, Any] | None) -> tuple[nn.Module, Layout]:
    """The transformer without weights, and the file's layout, every key and shape of it checked."""
    path, shapes = source.file.path, source.shapes
    other = describe_other(source.tensors, family.kind, source.file.tensors) or family.other_model(shapes)
    if other:
        raise BadInput(f"{path} is not a transformer of {family.name}: it is {other}.")
    try:
        transformer = family.empty_transformer(config or family.transformer_config(shapes))
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError):
        raise BadInput(
            f"{path} is not a transformer of {family.name}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    layout = family.layout(transformer)
    check_keys(transformer, layout, source, f"transformer of {family.name}")
    return transformer, layout
