"""Loads text encoders from single files, as ComfyUI's users have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from ..errors import BadInput
from ..families.info import TextEncoderInfo
from ..modules import own_parameters
from ..quantization.formats import FORMATS
from .detect import describe_other
from .key_mapping import FusedModule, Layout, Shapes
from .load_module import ModuleFile, check_keys, fill_module, open_module


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFile:
    """Layout of one of a family's text encoders in single files."""

    info: TextEncoderInfo
    model: type[PreTrainedModel]
    prefixes: tuple[str, ...]
    """Prefixes of its tensor names; files without a prefix are read as well."""
    stored_name: Callable[[str, Shapes], str]
    """Maps a module name of transformers to the file's."""
    config: Callable[[Shapes], dict[str, Any]]
    """Entries of the transformers config that follow from the shapes and override the published ones. Raises KeyError
    if a tensor is missing that every such encoder has."""
    output_width: Callable[[Shapes], int]
    """Channels of the output."""
    input_layer: str
    """Tensor of the transformer's file whose second dimension is the output width."""
    tokenizer: str
    """Subfolder of its tokenizer in the pipeline layout."""
    token_ids: Mapping[str, str] = field(default_factory=dict)
    """Tokens by the config entry that holds their id."""
    ignored_tensors: tuple[str, ...] = ()
    """Tensors of the file that encoding does not use."""
    unused_modules: tuple[str, ...] = ()
    """Modules that encoding does not use and that are not loaded."""


def open_encoder(encoder: EncoderFile, path: Path) -> ModuleFile:
    """Read the header. Raises BadInput for an unreadable file or another kind of file."""
    source = open_module(path, encoder.info.title, encoder.prefixes)
    if other := describe_other(source.tensors, encoder.info.detected_kind):
        raise BadInput(f"{path} is not a {encoder.info.title}: it is {other}.")
    return source


def check_encoder(encoder: EncoderFile, path: Path, published: Path) -> ModuleFile:
    """Open the file and check its header. Raises BadInput if it is not a complete encoder of this kind."""
    source = open_encoder(encoder, path)
    _empty_for(encoder, source, published, {})
    return source


def empty_encoder(encoder: EncoderFile, path: Path | None, published: Path) -> tuple[PreTrainedModel, dict[str, float]]:
    """Build the encoder of a file, or for None that of the config in the folder `published`, without weights.

    Returns it with the bits a value of the weights that the file stores quantized, by module. Raises BadInput as
    `check_encoder` does.
    """
    if path is not None:
        source = open_encoder(encoder, path)
        model, layout = _empty_for(encoder, source, published, {})
        stored = {fused.modules[0]: source.quantizations.get(fused.stored) for fused in layout}
        return model, {name: FORMATS[how.format].bits for name, how in stored.items() if how is not None}
    config_class = encoder.model.config_class
    assert config_class is not None
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    with _EmptyIsMeta(), no_init_weights():
        return _without_unused(encoder, encoder.model._from_config(config_class.from_dict(config))), {}


def load_encoder(
    encoder: EncoderFile, path: Path, published: Path, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """Load the encoder to the CPU: plain weights in `dtype`, quantized ones as they are stored.

    `published` is the folder of the published encoder's config; token ids of the tokenizer override it. Raises
    BadInput, with every key checked, if the file is not such an encoder or the tokenizer does not fit it.
    """
    source = open_encoder(encoder, path)
    ids = (
        {name: tokenizer.convert_tokens_to_ids(token) for name, token in encoder.token_ids.items()} if tokenizer else {}
    )
    model, layout = _empty_for(encoder, source, published, ids)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    vocabulary = embeddings.num_embeddings
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= vocabulary:
        raise BadInput(
            f"{path} has a vocabulary of {vocabulary} tokens and its tokenizer one of {len(tokenizer)}; one of the two "
            "belongs to another model."
        )
    fill_module(model, layout, source, dtype)
    return model


def _empty_for(
    encoder: EncoderFile, source: ModuleFile, published: Path, ids: Mapping[str, object]
) -> tuple[PreTrainedModel, Layout]:
    """The encoder without weights and the file's layout, with every key and shape checked."""
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    shapes, config_class = source.shapes, encoder.model.config_class
    assert config_class is not None
    try:
        config = _merged(_merged(config, encoder.config(shapes)), ids)
        with _EmptyIsMeta(), no_init_weights():
            model = encoder.model._from_config(config_class.from_dict(config))
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError):
        raise BadInput(
            f"{source.file.path} is not a {encoder.info.title}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    model = _without_unused(encoder, model)
    layout = [FusedModule(encoder.stored_name(name, shapes), (name,)) for name, _ in own_parameters(model)]
    check_keys(model, layout, source, encoder.info.title, encoder.ignored_tensors)
    return model, layout


def _without_unused(encoder: EncoderFile, model: PreTrainedModel) -> PreTrainedModel:
    # One module in place of two that share a weight.
    model.set_input_embeddings(model.get_input_embeddings())
    for name in encoder.unused_modules:
        model.set_submodule(name, torch.nn.Identity())
    return model


def _merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`config` updated with `over`, recursively in nested dicts."""
    merged = dict(config)
    for name, value in over.items():
        merged[name] = _merged(merged.get(name, {}), value) if isinstance(value, Mapping) else value
    return merged


class _EmptyIsMeta(TorchFunctionMode):
    """Context in which `torch.empty` allocates on the meta device. Computed tables, such as rotary frequencies, stay
    real, because no file fills them in; `torch.device("meta")` would drop them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
