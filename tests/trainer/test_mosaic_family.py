"""Walls of the families: one with every peculiarity costs one module, one record and its configs folders. It is
registered from here, and the trainer plans, trains, draws, exports and reads it as its own families."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.cli.main import main
from trainer.data.resize import Size
from trainer.errors import BadInput
from trainer.inference import edit
from trainer.lora.adapter import read_lora
from trainer.models.edit_model import EditModel, open_model
from trainer.models.model_files import ModelFiles
from trainer.single_file.key_mapping import to_stored

from ..mosaic_family import LARGE, SMALL, Mosaic, OwnBlock, registered
from ..several_controls import several_request, write_several
from ..single_files import write
from .klein_models import KLEIN_4B
from .test_sampling import run

F32 = torch.float32


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of both sizes; the family is known as long as they are there."""
    folder = tmp_path_factory.mktemp("mosaic")
    with registered(folder):
        yield folder


@pytest.fixture
def model(places: Path) -> EditModel:
    return open_model(SMALL, places / "Mosaic-1B")


def write_file(model: EditModel, path: Path) -> Path:
    """Write a model's transformer as a single file in the family's own layout."""
    transformer = model.load_transformer("cpu", F32)
    return write(path, "fp32", dict(to_stored(model.family.layout(transformer), transformer.state_dict())))


def test_its_blocks_are_run_by_its_own_forward_pass(model: EditModel):
    transformer = model.load_transformer("cpu", F32)
    assert [type(block) for block in transformer.transformer_blocks] == [OwnBlock]


def test_each_size_has_its_own_configs_and_is_told_from_the_other(places: Path, tmp_path: Path):
    small, large = open_model(SMALL), open_model(LARGE)
    assert small.family.configs != large.family.configs
    assert small.transformer_parameters() < large.transformer_parameters()
    with pytest.raises(BadInput, match=f"is not {SMALL}: by its config it is {LARGE}; choose that"):
        open_model(SMALL, places / "Mosaic-2B")
    path = write_file(open_model(LARGE, places / "Mosaic-2B"), tmp_path / "mosaic.safetensors")
    with pytest.raises(BadInput, match=f"it is {LARGE}; choose that as base_model"):
        open_model(SMALL, files=ModelFiles(transformer=path))


def test_its_file_is_read_and_no_other_family_takes_it(model: EditModel, tmp_path: Path):
    path = write_file(model, tmp_path / "mosaic.safetensors")
    found = open_model(SMALL, files=ModelFiles(transformer=path)).load_transformer("cpu", F32).state_dict()
    expected = model.load_transformer("cpu", F32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    with pytest.raises(BadInput, match="it is a Mosaic transformer"):
        open_model(KLEIN_4B, files=ModelFiles(transformer=path))


def test_its_latent_pixels_are_of_its_own_size(model: EditModel):
    family, codec = model.family, model.load_codec("cpu", F32)
    latents = family.encode(codec, torch.rand(1, 3, 96, 64))
    assert latents.shape == (1, 256, 3, 2)
    assert family.pack(latents).grid == (3, 2)
    assert codec.decode(latents).shape == (1, 3, 96, 64)
    assert family.target_size(Size(100, 70), 128) == (96, 64)


@pytest.mark.slow
def test_images_are_drawn_by_its_own_schedule(model: EditModel, monkeypatch: pytest.MonkeyPatch):
    def drawn() -> bytes:
        picture = Image.new("RGB", (64, 64), "red")
        return run(edit(model, picture, "make it blue", steps=2, size=Size(64, 96)))[1].tobytes()

    own = drawn()
    assert len(own) == 64 * 96 * 3
    monkeypatch.setattr(Mosaic, "shift", lambda self, scheduler, tokens, steps: 2.0)
    assert drawn() != own


@pytest.mark.slow
def test_a_training_is_planned_for_each_size(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parquet = write_several(tmp_path / "edits.parquet")
    for base_model in (SMALL, LARGE):
        (tmp_path / "request.json").write_text(json.dumps(several_request(parquet) | {"base_model": base_model}))
        assert main(["plan", str(tmp_path / "request.json"), "--vram", "8"]) == 0
        assert capsys.readouterr().out.startswith(f"{base_model} in ")


@pytest.mark.slow
def test_the_command_line_trains_it_on_two_control_images_and_edits_with_the_lora(
    model: EditModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    parquet = write_several(tmp_path / "edits.parquet", [(True, False), (True, True), (False, True)])
    samples = [{"ctrl_img_url": "", "prompt": "make it red"}]
    request = several_request(parquet, steps=2, learning_rate=0.01, samples=samples) | {"base_model": SMALL}
    (tmp_path / "request.json").write_text(json.dumps(request))
    place = ["--model", str(model.folder)]
    settings = ["--lora-targets", "all-linear", "--mask", "difference", "--resolution", "64"]
    out = ["--out", str(tmp_path / "mine")]
    assert main(["train", str(tmp_path / "request.json"), *place, *settings, *out]) == 0
    lora = tmp_path / "mine" / "mine-000002.safetensors"
    trained = {re.sub(r"\.lora_[AB]\.weight", "", name) for name in load_file(lora)}
    assert {"transformer.x_embedder", "transformer.context_embedder"} < trained, "the kind of layer that is its own"
    own = {f"diffusion_model.mosaic_in.lora_{half}.weight": torch.ones(2, 256 if half == "A" else 2) for half in "A"}
    own["diffusion_model.mosaic_in.lora_B.weight"] = torch.ones(128, 2)
    assert "transformer.x_embedder.lora_A.weight" in read_lora(own, model.family, model.empty_transformer())
    assert len(list((tmp_path / "mine" / "samples").glob("step-*.png"))) == 2
    pictures = []
    for number in (1, 2):
        Image.new("RGB", (64, 32 * number), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
        pictures += ["--image", str(tmp_path / f"{number}.png")]
    capsys.readouterr()
    edits = ["--base-model", SMALL, *place, *pictures, "--prompt", "make it red", "--out", str(tmp_path / "out.png")]
    assert main(["edit", *edits, "--lora", str(lora)]) == 0
    assert Image.open(tmp_path / "out.png").size == (64, 32)
    assert main(["edit", *edits, "--image", str(tmp_path / "1.png")]) == 2
    assert "takes at most 2 control images, and 3 are named" in capsys.readouterr().err
