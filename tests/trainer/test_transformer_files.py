"""Which files a transformer is read from, for a host program that opens them itself."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from trainer.errors import BadInput
from trainer.models.edit_model import EditModel
from trainer.models.model_files import ModelFiles

from ..opened_files import opened_files
from ..single_files import FLUX, FLUX_SIZES, stored, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")


def opened_by_loading(model: EditModel, folder: Path) -> set[str]:
    with opened_files(folder) as opened:
        model.load_transformer("cpu", torch.float32)
    return opened


def names(model: EditModel, folder: Path) -> set[str]:
    files = model.transformer_files()
    assert all(file.is_file() and folder in file.parents for file in files)
    return {file.name for file in files}


def test_they_are_those_that_loading_opens(kontext: EditModel, tmp_path: Path):
    transformer = kontext.load_transformer("cpu", torch.float32)
    assert kontext.folder is not None
    whole = shutil.copytree(kontext.folder, tmp_path / "whole")
    shards = shutil.copytree(whole, tmp_path / "shards")
    shutil.rmtree(shards / "transformer")
    transformer.save_pretrained(shards / "transformer", max_shard_size="40KB")
    trained = write(tmp_path / "trained.safetensors", "fp32", stored(kontext.base_model, transformer))
    file = write(tmp_path / "file.safetensors", "fp32", stored(FLUX, FluxTransformer2DModel(**FLUX_SIZES)))
    models = {
        "whole": replace(kontext, folder=whole),
        "shards": replace(kontext, folder=shards),
        "file": replace(kontext, files=ModelFiles(transformer=file)),
        "trained": replace(kontext, folder=whole).with_weights(trained),
    }
    found = {name: names(model, tmp_path) for name, model in models.items()}
    assert found == {name: opened_by_loading(model, tmp_path) for name, model in models.items()}
    assert len(found["shards"]) > 2
    assert (found["file"], found["trained"]) == ({file.name}, {trained.name})


def test_a_folder_without_them_is_refused(kontext: EditModel, tmp_path: Path):
    assert kontext.folder is not None
    folder = shutil.copytree(kontext.folder, tmp_path / "model")
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.unlink()
    with pytest.raises(BadInput, match="does not exist"):
        replace(kontext, folder=folder).transformer_files()
