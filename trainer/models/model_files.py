"""Single files in place of a base model's components, checked by their headers before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadInput, DamagedFile
from ..families.info import Component
from ..families.registry import find_variant
from ..files import read_json
from ..single_file.detect import detect_kind
from ..single_file.header import open_weights
from ..single_file.text_encoder import check_encoder
from ..single_file.tokenizer import find_tokenizers
from ..single_file.vae import check_vae
from .pipeline_folder import INDEX
from .transformer import check_single_file, file_warnings, open_transformer

if TYPE_CHECKING:
    from .family import Family


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Single files in place of components of a base model's folder."""

    transformer: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    tokenizers: Path | None = None
    """A ComfyUI installation to take the tokenizers from; None: see `find_tokenizers`."""

    def of(self, component: Component) -> dict[str, Path]:
        """A component's files by subfolder of the pipeline layout; empty if it is loaded from there."""
        names = {"transformer": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "text_encoder_2")}
        return {name: path for name in names[component] if (path := getattr(self, name)) is not None}


NO_FILES = ModelFiles()


def check_files(family: Family, base_model: str, files: ModelFiles, folder: Path | None) -> ModelFiles:
    """Check the files by their headers; two text encoders given in the wrong order are swapped.

    Raises BadInput with everything that is wrong.
    """
    if find_variant(base_model).embedded:
        raise BadInput(f"{base_model} is complete in itself; remove the model files and the ComfyUI folder.")
    files = _in_right_order(family, files)
    text, faults = files.of("text"), []
    widths = {}
    for name, path in text.items():
        encoder = family.text_encoders.get(name)
        if encoder is None:
            faults.append(f"{base_model} has one text encoder; remove {path}.")
        elif source := _note(faults, check_encoder, encoder, path, family.configs / name):
            widths[name] = encoder.output_width(source.shapes)
    if files.transformer is not None:
        _note(faults, check_single_file, family, files.transformer)
    if files.vae is not None:
        _note(faults, check_vae, family.vae_file, files.vae, family.configs / "vae")
    if family.text_encoders.keys() <= text.keys():
        _note(faults, find_tokenizers, family.tokenizers, base_model, files.tokenizers, folder)
    if files.transformer is not None and not faults:
        faults += _misfits(family, files, files.transformer, widths)
    if faults:
        raise BadInput("\n".join(faults))
    return files


def warnings_about_files(family: Family, base_model: str, files: ModelFiles, folder: Path | None) -> list[str]:
    """Reasons to doubt that the files, or the folder in their place, are the base model's, one sentence each."""
    warnings = file_warnings(files.transformer, base_model) if files.transformer else []
    source = files.transformer or folder
    if source is not None and is_distilled(family, source):
        warnings.append(
            f"{source.name} is a distilled model, which draws in a few steps: training makes it worse at that. Train "
            f"{base_model} instead; its LoRA also works on the distilled model."
        )
    vae = family.info.vae
    if files.vae and vae.lookalike_names and (lookalike := re.search(vae.lookalike_names, files.vae.stem.lower())):
        warnings.append(
            f'{files.vae.name} may not be the {vae.title}: its name contains "{lookalike.group(0)}", and that VAE has '
            "the same tensors."
        )
    return warnings


def is_distilled(family: Family, source: Path) -> bool:
    """Tell whether a transformer's file, by its name, or a folder in diffusers' layout, by its model_index.json, is a
    model distilled to few steps."""
    info = family.info
    if source.is_dir():
        try:
            index = read_json(source / INDEX)
        except (FileNotFoundError, DamagedFile):
            return False  # it is said when the model is loaded
        return isinstance(index, dict) and index.get(info.distilled_entry) is True
    return bool(info.distilled_names and re.search(info.distilled_names, source.stem.lower()))


def _in_right_order(family: Family, files: ModelFiles) -> ModelFiles:
    """Each text encoder file in the field of the encoder that it was detected as."""
    places = {encoder.detected_kind: name for name, encoder in family.info.text_encoders.items()}
    given, found = files.of("text"), {}
    for name, path in given.items():
        try:
            kind = detect_kind(open_weights(path, "text encoder").tensors)
        except BadInput:
            return files
        found[places.get(kind, name) if kind else name] = path
    if len(found) < len(given):
        return files
    return replace(files, text_encoder=found.get("text_encoder"), text_encoder_2=found.get("text_encoder_2"))


def _misfits(family: Family, files: ModelFiles, transformer: Path, widths: Mapping[str, int]) -> Iterator[str]:
    """Faults of text encoders whose output width does not fit the transformer."""
    shapes = open_transformer(transformer).shapes
    for name, width in widths.items():
        encoder = family.text_encoders[name]
        if width != (expected := shapes[encoder.input_layer][1]):
            yield (
                f"{files.of('text')[name]} is not the {encoder.info.title} of this transformer: its output has {width} "
                f"channels, but {transformer} expects {expected}."
            )


def _note(faults: list[str], check: Callable[..., Result], *arguments: Any) -> Result | None:
    """Run a check and return its result; if it raises BadInput, append the message to the faults and return None."""
    try:
        return check(*arguments)
    except BadInput as error:
        faults.append(str(error))
        return None
