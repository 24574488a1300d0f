"""A base model's folder in diffusers' pipeline layout: its configs, the base model that it is, and its download."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, DamagedFile, RunFailed
from ..families.info import FamilyInfo, Variant
from ..families.registry import find_family
from ..files import read_json
from ..paths import path_kind

INDEX = "model_index.json"
"""File that names a pipeline's class and components."""


FILE_TYPES = ("json", "safetensors", "txt", "model", "jinja")
"""Extensions of the files that are downloaded."""


SIZES = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
"""Entries of a transformer's diffusers config by which variants with configs of their own are told apart."""


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """Read the diffusers config of a component, by the name of its subfolder. Raises BadInput."""
    path = folder / component / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise BadInput(f"{path} cannot be loaded: there is no such file; the model is incomplete.") from None
    except DamagedFile as error:
        raise BadInput(f"{path} cannot be loaded: it {error}.") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path} cannot be loaded: it is not a JSON object.")
    return config


def check_pipeline(folder: Path, base_model: str, with_transformer: bool = True) -> None:
    """Raise BadInput for a folder without a pipeline, and for one whose transformer, unless another takes its place, is
    that of another variant of the base model's family."""
    if path_kind(folder / INDEX) != "file":
        raise BadInput(f"{folder} is not a model in diffusers' layout: it has no {INDEX}.")
    found = folder_variant(folder, base_model) if with_transformer else None
    if found is not None and found.name != base_model:
        raise BadInput(f"{folder} is not {base_model}: by its config it is {found.name}; choose that as base_model.")


def folder_variant(folder: Path, base_model: str) -> Variant | None:
    """The variant of a base model's family whose transformer a folder has; None for a config that cannot be read, or
    is no published one's."""
    try:
        config = read_config(folder, "transformer")
    except BadInput:
        return None  # it is said when the transformer is loaded
    return variant_of(find_family(base_model), config, base_model)


def variant_of(info: FamilyInfo, config: Mapping[str, Any], base_model: str) -> Variant | None:
    """The variant whose options and sizes a transformer's diffusers config has, `base_model` if it is one of several;
    None if no variant has them."""
    known = {option for variant in info.variants for option in variant.options}
    options = frozenset(option for option in known if config.get(option))
    fitting = [variant for variant in info.variants if variant.options == options]
    if any(variant.configs for variant in info.variants):
        fitting = [variant for variant in fitting if variant.configs and _same_sizes(config, variant.configs)]
    return next((variant for variant in fitting if variant.name == base_model), fitting[0] if fitting else None)


def _same_sizes(config: Mapping[str, Any], configs: Path) -> bool:
    published = read_config(configs, "transformer")
    return all(config.get(name) == published.get(name) for name in SIZES)


def download(base_model: str, subfolders: Sequence[str]) -> Path:
    """Download subfolders of a base model's repository into the Hugging Face cache; returns the folder there.

    Raises BadInput where its license has to be accepted first, and RunFailed where the download fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    patterns = [f"{name}/*.{extension}" for name in subfolders for extension in FILE_TYPES]
    try:
        return Path(snapshot_download(base_model, allow_patterns=[INDEX, "scheduler/*.json", *patterns]))
    except GatedRepoError as error:
        raise BadInput(
            f"{base_model} is gated: accept its licence at https://huggingface.co/{base_model}, then log in with "
            "`hf auth login`, or put your token into the environment variable HF_TOKEN."
        ) from error
    except Exception as error:  # A download fails in as many ways as there are networks and HTTP libraries.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise RunFailed(f"The disk is too full to download {base_model}; free some space.") from error
        raise RunFailed(
            f"{base_model} is not complete on this machine and cannot be downloaded now: {error}\n"
            f"Check the connection, or fetch it beforehand with `hf download {base_model}`."
        ) from error
