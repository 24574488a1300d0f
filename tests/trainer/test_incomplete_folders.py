"""A folder of the base model whose files lack weights is refused: the libraries would fill in random numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.errors import BadInput
from trainer.models.edit_model import EditModel


def without_one(model: EditModel, part: str, folder: Path) -> tuple[EditModel, str]:
    """The model with a tensor of one part under another name, and the tensor's name."""
    copy = shutil.copytree(model.folder, folder / "model")
    (path,) = (copy / part).glob("*.safetensors")
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].ndim)
    tensors[f"other.{name}"] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    return replace(model, folder=copy), name


def open_part(model: EditModel, part: str) -> None:
    load = model.load_codec if part == "vae" else model.load_text_encoder
    load(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_weights_that_kontext_lacks_are_named(part: str, kontext: EditModel, tmp_path: Path) -> None:
    model, _ = without_one(kontext, part, tmp_path)
    with pytest.raises(BadInput, match=rf"{part} is not a whole \w+: 1 of its tensors are missing, such as '.+'"):
        open_part(model, part)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_weights_that_qwen_lacks_are_named(part: str, qwen: EditModel, tmp_path: Path) -> None:
    model, _ = without_one(qwen, part, tmp_path)
    with pytest.raises(BadInput, match=rf"{part} is not a whole \w+: 1 of its tensors are missing, such as '.+'"):
        open_part(model, part)
