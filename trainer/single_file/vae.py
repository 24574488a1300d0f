"""Loads VAEs from single files, as ComfyUI's users have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin

from ..errors import BadInput
from ..families.info import VaeInfo
from .detect import describe_other
from .key_mapping import Shapes
from .load_module import ModuleFile, open_module

Tensors = dict[str, torch.Tensor]

PREFIXES = ("first_stage_model.", "vae.")
"""Prefixes of a VAE's tensors in checkpoints and in other programs' files; files without a prefix are read too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeFile:
    """Layout of a family's VAE in single files."""

    info: VaeInfo
    model: type[ConfigMixin]
    """A diffusers class, which is a ModelMixin as well."""
    convert: Callable[[Tensors, Mapping[str, Any]], Tensors]
    """Renames a file's tensors, of any shape and dtype, to diffusers' names, given the diffusers config."""
    diffusers_name: str
    """A tensor that only files with diffusers' names have."""
    config: Callable[[Shapes], dict[str, Any]]
    """Entries of the diffusers config that follow from the shapes and override the published ones."""


def check_vae(vae: VaeFile, path: Path, published: Path) -> None:
    """Check from the header that `path` is a complete VAE of this kind. Raises BadInput if it is not."""
    _empty_for(vae, _open(vae, path), published)


def load_vae(vae: VaeFile, path: Path, published: Path, dtype: torch.dtype) -> ModelMixin:
    """Load the VAE to the CPU in `dtype`; `published` is the folder of the published VAE's config.

    Raises BadInput, with every key checked, if the file is not such a VAE.
    """
    source = _open(vae, path)
    model, config = _empty_for(vae, source, published)
    with source.file.opened() as reader:
        # Copied, because the reader may return the file's memory.
        tensors = {name: reader.read(source.prefix + name).to(dtype, copy=True) for name in source.tensors}
    model.load_state_dict(_converted(vae, source, tensors, config), assign=True)
    return model


def _open(vae: VaeFile, path: Path) -> ModuleFile:
    source = open_module(path, vae.info.title, PREFIXES)
    if other := describe_other(source.tensors, vae.info.detected_kind):
        raise BadInput(f"{path} is not a {vae.info.title}: it is {other}.")
    if source.quantizations:
        raise BadInput(f"{path} is a quantized VAE, which cannot be read; use the bf16, fp16 or fp32 file.")
    return source


def _empty_for(vae: VaeFile, source: ModuleFile, published: Path) -> tuple[ModelMixin, Mapping[str, Any]]:
    """The VAE without weights and its config, with every key and shape of the file checked."""
    path = source.file.path
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    stand_ins = {name: torch.empty(tensor.shape, device="meta") for name, tensor in source.tensors.items()}
    try:
        tensors = _converted(vae, source, stand_ins, config)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config |= vae.config(shapes)
        with torch.device("meta"):
            model = vae.model.from_config(config)
        assert isinstance(model, ModelMixin)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
        raise BadInput(
            f"{path} is not a {vae.info.title}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = [f"{name} is missing" for name in expected if name not in shapes]
    faults += [f"{name} does not belong there" for name in shapes if name not in expected]
    faults += [f"{name} does not belong there" for name in _dropped(stand_ins, tensors)]
    faults += [
        f"{name} has shape {shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BadInput(f"{path} is not a whole {vae.info.title}: {'; '.join(faults[:5])}{more}.")
    return model, config


def _converted(vae: VaeFile, source: ModuleFile, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return tensors if vae.diffusers_name in source.tensors else vae.convert(dict(tensors), config)


def _dropped(tensors: Tensors, converted: Tensors) -> list[str]:
    """Names of the tensors that the conversion dropped; the ones it keeps are unchanged or views."""
    kept = {id(tensor if tensor._base is None else tensor._base) for tensor in converted.values()}
    return [name for name, tensor in tensors.items() if id(tensor) not in kept]
