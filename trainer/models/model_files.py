"""Single files that a person gives in the place of a base model's parts, checked by their headers before anything is
loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadInput
from ..single_file.detect import kind_of
from ..single_file.header import open_weights
from ..single_file.text_encoder import check_encoder
from ..single_file.tokenizer import find_tokenizers
from ..single_file.vae import check_vae
from . import CONFIGS
from .transformer import check_single_file, file_warnings, open_transformer
from .types import Part

if TYPE_CHECKING:
    from .family import Family


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Single files that take the place of parts of a base model's folder."""

    transformer: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    """CLIP-L for Flux, Qwen2.5-VL for Qwen."""
    text_encoder_2: Path | None = None
    """T5-XXL for Flux."""
    tokenizers: Path | None = None
    """A ComfyUI installation, whose tokenizers are taken; None: see `find_tokenizers`."""

    def of(self, part: Part) -> dict[str, Path]:
        """The weights files of a part, by their folders in the pipeline's layout; empty when it comes from there."""
        names = {"transformer": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "text_encoder_2")}
        return {name: path for name in names[part] if (path := getattr(self, name)) is not None}


NO_FILES = ModelFiles()


def check_files(family: Family, base_model: str, files: ModelFiles, folder: Path | None) -> ModelFiles:
    """The files, two text encoders put in their places whichever way round they were given.

    Raises BadInput naming everything that is wrong with them, from their headers alone.
    """
    if base_model.startswith("tiny/"):
        raise BadInput(f"{base_model} is complete in itself: neither files nor a ComfyUI folder go with it.")
    files = _in_their_places(family, files)
    text, faults = files.of("text"), []
    widths = {}
    for name, path in text.items():
        encoder = family.text_encoders.get(name)
        if encoder is None:
            faults.append(f"{base_model} has one text encoder: there is no place for {path}.")
        elif source := _note(faults, check_encoder, encoder, path, CONFIGS / family.name / name):
            widths[name] = encoder.width(source.shapes)
    if files.transformer is not None:
        _note(faults, check_single_file, family, files.transformer)
    if files.vae is not None:
        _note(faults, check_vae, family.vae_file, files.vae, CONFIGS / family.name / "vae")
    if family.text_encoders.keys() <= text.keys():
        _note(faults, find_tokenizers, family.tokenizers, base_model, files.tokenizers, folder)
    if files.transformer is not None and not faults:
        faults += _misfits(family, files, widths)
    if faults:
        raise BadInput("\n".join(faults))
    return files


def warnings_about_files(family: Family, base_model: str, files: ModelFiles) -> list[str]:
    """What about the files makes one doubt that they are what they should be, in sentences."""
    warnings = file_warnings(files.transformer, base_model) if files.transformer else []
    lookalike_names = family.vae_file.lookalike_names
    if files.vae and lookalike_names and (sibling := re.search(lookalike_names, files.vae.stem.lower())):
        warnings.append(
            f'{files.vae.name} may not be the {family.vae_file.title}: it says "{sibling.group(0)}", and that VAE has '
            "the same tensors."
        )
    return warnings


def _in_their_places(family: Family, files: ModelFiles) -> ModelFiles:
    """Each text encoder where the family has one of its kind."""
    places = {encoder.kind: name for name, encoder in family.text_encoders.items()}
    given, found = files.of("text"), {}
    for name, path in given.items():
        try:
            kind = kind_of(open_weights(path, "text encoder").tensors)
        except BadInput:
            return files
        found[places.get(kind.name, name) if kind else name] = path
    if len(found) < len(given):
        return files
    return replace(files, text_encoder=found.get("text_encoder"), text_encoder_2=found.get("text_encoder_2"))


def _misfits(family: Family, files: ModelFiles, widths: Mapping[str, int]) -> Iterator[str]:
    """Text encoders whose output is not as wide as the transformer wants it."""
    shapes = open_transformer(files.transformer).shapes
    for name, width in widths.items():
        encoder = family.text_encoders[name]
        if width != (wanted := shapes[encoder.feeds][1]):
            yield (
                f"{files.of('text')[name]} is not the {encoder.title} of this transformer: its output has {width} "
                f"channels, and {files.transformer} wants {wanted}."
            )


def _note(faults: list[str], check: Callable[..., Result], *arguments: Any) -> Result | None:
    """What the check returns; None, and its message among the faults, when it refuses."""
    try:
        return check(*arguments)
    except BadInput as error:
        faults.append(str(error))
        return None
