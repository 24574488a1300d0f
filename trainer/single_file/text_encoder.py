"""Text encoders from single files, as ComfyUI's users have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import BadInput
from ..modules import own_parameters
from .detect import describe_other
from .key_mapping import FusedModule, Layout, Shapes
from .load_module import ModuleFile, check_keys, fill_module, open_module


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFile:
    """What one of a family's text encoders is, and how single files hold it."""

    kind: str
    """detect.py's name for it."""
    title: str
    """For messages."""
    model: type[PreTrainedModel]
    prefixes: tuple[str, ...]
    """In front of its tensors' names; files without any are read as well."""
    stored: Callable[[str, Shapes], str]
    """The file's name for one of the model's modules."""
    config: Callable[[Shapes], dict[str, Any]]
    """What the shapes tell of transformers' config: it goes over the published one. Raises KeyError where a tensor is
    missing that every such encoder has."""
    width: Callable[[Shapes], int]
    """Channels of its output."""
    feeds: str
    """The tensor of the transformer's file whose second dimension is that width."""
    tokenizer: str
    """Its tokenizer's folder in the pipeline's layout."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Fields of the config that hold a token's number: the token."""
    ignored: tuple[str, ...] = ()
    """Tensors that files have and encoding does not use."""
    unused: tuple[str, ...] = ()
    """Modules that encoding does not use; they are left out."""


def open_encoder(encoder: EncoderFile, path: Path) -> ModuleFile:
    """Read the header. Raises BadInput for a file that cannot be read or is something else."""
    source = open_module(path, encoder.title, encoder.prefixes)
    if other := describe_other(source.tensors, encoder.kind):
        raise BadInput(f"{path} is not a {encoder.title}: it is {other}.")
    return source


def check_encoder(encoder: EncoderFile, path: Path, published: Path) -> ModuleFile:
    """The opened file. Raises BadInput, from the header alone, when it is not a whole encoder of this kind."""
    source = open_encoder(encoder, path)
    _empty_for(encoder, source, published, {})
    return source


def load_encoder(
    encoder: EncoderFile, path: Path, published: Path, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """The encoder on the CPU: plain weights in `dtype`, quantized ones as they are stored.

    `published` is the folder of the published encoder's config; what `tokenizer` says goes over it. Raises BadInput
    when the file is not such an encoder's, with every key checked, and when the tokenizer is another's.
    """
    source = open_encoder(encoder, path)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in encoder.tokens.items()} if tokenizer else {}
    model, layout = _empty_for(encoder, source, published, ids)
    words = model.get_input_embeddings().num_embeddings
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= words:
        raise BadInput(
            f"{path} has {words} words and its tokenizer {len(tokenizer)}: one of them belongs to another model."
        )
    fill_module(model, layout, source, dtype)
    return model


def _empty_for(
    encoder: EncoderFile, source: ModuleFile, published: Path, ids: Mapping[str, int]
) -> tuple[PreTrainedModel, Layout]:
    """The encoder without weights, and the file's layout, every key and shape of it checked."""
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    shapes = source.shapes
    try:
        config = _merged(_merged(config, encoder.config(shapes)), ids)
        with _EmptyIsMeta():
            model = encoder.model._from_config(encoder.model.config_class.from_dict(config))
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError):
        raise BadInput(
            f"{source.file.path} is not a {encoder.title}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    model.set_input_embeddings(model.get_input_embeddings())  # One module, where two only share its weight.
    for name in encoder.unused:
        model.set_submodule(name, torch.nn.Identity())
    layout = [FusedModule(encoder.stored(name, shapes), (name,)) for name, _ in own_parameters(model)]
    check_keys(model, layout, source, encoder.title, encoder.ignored)
    return model, layout


def _merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the entries of `over`, also inside its own dicts."""
    merged = dict(config)
    for name, value in over.items():
        merged[name] = _merged(merged.get(name, {}), value) if isinstance(value, Mapping) else value
    return merged


class _EmptyIsMeta(TorchFunctionMode):
    """Inside, what is made to be filled takes no storage; tables that are computed, such as rotary frequencies, are
    real, for no file fills them in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
