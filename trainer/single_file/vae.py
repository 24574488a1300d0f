"""VAEs from single files, as ComfyUI's users have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from ..errors import BadInput
from .detect import describe_other
from .key_mapping import Shapes
from .load_module import ModuleFile, open_module

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeFile:
    """What a family's VAE is, and how single files hold it."""

    kind: str
    """detect.py's name for it."""
    title: str
    """For messages."""
    model: type[ModelMixin]
    prefixes: tuple[str, ...]
    """In front of its tensors' names; files without any are read as well."""
    convert: Callable[[Tensors, Mapping[str, Any]], Tensors]
    """A file's tensors, and diffusers' config, to the tensors with diffusers' names."""
    own_name: str
    """A tensor by which a file is known that has diffusers' names already."""
    config: Callable[[Shapes], dict[str, Any]]
    """What the shapes, under diffusers' names, tell of diffusers' config: it goes over the published one."""
    lookalike_names: str = ""
    """A regular expression that is found in names of files of other VAEs with the same tensors; empty: none known."""


def check_vae(vae: VaeFile, path: Path, published: Path) -> None:
    """Raises BadInput, from the header alone, when `path` is not a whole VAE of this kind."""
    _empty_for(vae, _open(vae, path), published)


def load_vae(vae: VaeFile, path: Path, published: Path, dtype: torch.dtype) -> ModelMixin:
    """The VAE on the CPU; `published` is the folder of the published VAE's config. Raises BadInput when the file is
    not such a VAE's, with every key checked."""
    source = _open(vae, path)
    model, config = _empty_for(vae, source, published)
    with source.file.opened() as reader:
        # Copies: what is read may be the file's own memory.
        tensors = {name: reader.read(source.prefix + name).to(dtype, copy=True) for name in source.tensors}
    model.load_state_dict(_converted(vae, source, tensors, config), assign=True)
    return model


def _open(vae: VaeFile, path: Path) -> ModuleFile:
    source = open_module(path, vae.title, vae.prefixes)
    if other := describe_other(source.tensors, vae.kind):
        raise BadInput(f"{path} is not a {vae.title}: it is {other}.")
    if source.quantizations:
        raise BadInput(f"{path} is a quantized VAE, which cannot be read; take the bf16, fp16 or fp32 file.")
    return source


def _empty_for(vae: VaeFile, source: ModuleFile, published: Path) -> tuple[ModelMixin, Mapping[str, Any]]:
    """The VAE without weights and its config, every key and shape of the file checked."""
    path = source.file.path
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    stand_ins = {name: torch.empty(tensor.shape, device="meta") for name, tensor in source.tensors.items()}
    try:
        tensors = _converted(vae, source, stand_ins, config)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config |= vae.config(shapes)
        with torch.device("meta"):
            model = vae.model.from_config(config)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
        raise BadInput(
            f"{path} is not a {vae.title}: it has {len(source.file.tensors)} tensors such as "
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
        raise BadInput(f"{path} is not a whole {vae.title}: {'; '.join(faults[:5])}{more}.")
    return model, config


def _converted(vae: VaeFile, source: ModuleFile, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return tensors if vae.own_name in source.tensors else vae.convert(dict(tensors), config)


def _dropped(tensors: Tensors, converted: Tensors) -> list[str]:
    """The tensors that the conversion has left out; what it keeps, it keeps as it is or as a view."""
    kept = {id(tensor if tensor._base is None else tensor._base) for tensor in converted.values()}
    return [name for name, tensor in tensors.items() if id(tensor) not in kept]
