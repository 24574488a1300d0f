"""Tokenizers for text encoders that come as single files: from a ComfyUI installation or the Hugging Face cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput

ENVIRONMENT = "COMFYUI_PATH"
"""The environment variable that names a ComfyUI installation."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Where a tokenizer lies and how it is loaded."""

    kind: type[PreTrainedTokenizerBase]
    comfyui: str
    """Its folder in a ComfyUI installation."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the pipeline's own tokenizer is set to where ComfyUI's files say something else."""


def find_tokenizers(
    tokenizers: Mapping[str, Tokenizer], base_model: str, comfyui: Path | None, folder: Path | None
) -> dict[str, Path]:
    """The folder of each tokenizer, by its name in the pipeline's layout: in the ComfyUI installation that is named,
    else in the base model's folder, else in the installation that COMFYUI_PATH names, else in the Hugging Face cache.
    Nothing is downloaded. Raises BadInput, naming the remedies, when one is nowhere."""
    if comfyui is not None and not comfyui.is_dir():
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
                f"The tokenizers of {base_model} are not on this machine: {name} is missing. Either name a ComfyUI "
                f"installation, which has them, with --comfyui DIR or the environment variable {ENVIRONMENT}; or "
                f"fetch them once with `hf download {base_model}"
                + "".join(f' --include "{name}/*"' for name in tokenizers)
                + "`."
                + (f"\nLooked in the Hugging Face cache and in{looked}" if looked else "")
            )
        found[name] = place
    return found


def load_tokenizers(tokenizers: Mapping[str, Tokenizer], places: Mapping[str, Path]) -> dict[str, Any]:
    """The tokenizers by name. Raises BadInput for files that are damaged."""
    loaded = {}
    for name, tokenizer in tokenizers.items():
        try:
            loaded[name] = tokenizer.kind.from_pretrained(places[name], local_files_only=True, **tokenizer.options)
        except Exception as error:  # The tokenizers library raises plain Exceptions for damaged files.
            raise BadInput(f"The tokenizer in {places[name]} cannot be loaded: {error}") from error
    return loaded


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _in_cache(base_model: str, name: str) -> Path | None:
    """The tokenizer's folder in the Hugging Face cache, if it is there."""
    try:
        snapshot = snapshot_download(base_model, allow_patterns=[f"{name}/*"], local_files_only=True)
    except Exception:  # Not in the cache, or no cache at all: the library raises many kinds of errors for that.
        return None
    folder = Path(snapshot) / name
    return folder if _is_tokenizer(folder) else None
