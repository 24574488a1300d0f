"""Finds and loads tokenizers for text encoders in single files, which do not contain them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from ..paths import path_kind

ENVIRONMENT = "COMFYUI_PATH"
"""Environment variable with the path of a ComfyUI installation."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Location and class of a tokenizer."""

    model: type[PreTrainedTokenizerBase]
    comfyui: str
    """Folder below a ComfyUI installation."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `from_pretrained` that restore the pipeline's settings where ComfyUI's files differ."""


def find_tokenizers(
    tokenizers: Mapping[str, Tokenizer], base_model: str, comfyui: Path | None, folder: Path | None
) -> dict[str, Path]:
    """Find the folder of each tokenizer, by subfolder of the pipeline layout.

    Searched in this order: the given ComfyUI installation, the base model's folder, the installation at COMFYUI_PATH,
    the Hugging Face cache. Nothing is downloaded. Raises BadInput with remedies if a tokenizer is not found.
    """
    if comfyui is not None and path_kind(comfyui) != "folder":
        raise BadInput(f"The ComfyUI installation {comfyui} does not exist.")
    found = {}
    for name, tokenizer in tokenizers.items():
        places = [comfyui / tokenizer.comfyui] if comfyui else []
        places += [folder / name] if folder else []
        if named := os.environ.get(ENVIRONMENT):
            places.append(Path(named) / tokenizer.comfyui)
        place = next(filter(_is_tokenizer, places), None) or _in_cache(base_model, name)
        if place is None:
            looked = "".join(f"\n  {place}" for place in places)
            raise BadInput(
                f"The tokenizers of {base_model} are not on this machine: {name} is missing. Either give the path "
                f"of a ComfyUI installation, with --comfyui DIR or the environment variable {ENVIRONMENT}, or "
                f"download them once with `hf download {base_model}"
                + "".join(f' --include "{name}/*"' for name in tokenizers)
                + "`."
                + (f"\nLooked in the Hugging Face cache and in{looked}" if looked else "")
            )
        found[name] = place
    return found


def load_tokenizers(tokenizers: Mapping[str, Tokenizer], places: Mapping[str, Path]) -> dict[str, Any]:
    """Load the tokenizers, by subfolder. Raises BadInput for damaged files."""
    loaded = {}
    for name, tokenizer in tokenizers.items():
        try:
            loaded[name] = tokenizer.model.from_pretrained(places[name], local_files_only=True, **tokenizer.options)
        except Exception as error:  # The tokenizers library raises plain Exceptions for damaged files.
            raise BadInput(f"The tokenizer in {places[name]} cannot be loaded: {error}") from error
    return loaded


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _in_cache(base_model: str, name: str) -> Path | None:
    """The tokenizer's folder in the Hugging Face cache; None if it is not there."""
    try:
        snapshot = snapshot_download(base_model, allow_patterns=[f"{name}/*"], local_files_only=True)
    except Exception:  # The library raises many kinds of errors for an incomplete or missing cache.
        return None
    folder = Path(snapshot) / name
    return folder if _is_tokenizer(folder) else None
