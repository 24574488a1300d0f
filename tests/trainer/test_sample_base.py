"""Samples on the model that was distilled from the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer.config.public import public_settings
from trainer.errors import BadInput
from trainer.events import Progress, Sample
from trainer.inference import edit
from trainer.models.edit_model import EditModel, open_model
from trainer.single_file.header import open_weights

from .conftest import Runs
from .test_sampling import run

SAMPLES = [{"ctrl_img_url": "", "prompt": "pair number one 1"}]


@pytest.fixture
def distilled(klein: EditModel, tmp_path: Path) -> Path:
    """A folder of the same model with other weights, which says that it is distilled."""
    folder = Path(shutil.copytree(klein.folder, tmp_path / "distilled"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    draw = torch.Generator().manual_seed(9)
    tensors = {name: t + 0.05 * torch.randn(t.shape, generator=draw) for name, t in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    return folder


def _check_private(run: Path, lora: Path, source: Path) -> None:
    """Its folder stays in the run folder: neither the LoRA's header nor what is sent to others names it."""
    saved = json.loads((run / "settings.json").read_text())
    assert saved["sample_base"] == str(source)
    recorded = json.loads(open_weights(lora, "LoRA file").metadata["edit_trainer.settings"])
    assert recorded["sample_base"] == public_settings(saved)["sample_base"] == source.name


def pictures(events: list) -> dict[int, Image.Image]:
    return {event.step: event.image for event in events if isinstance(event, Sample)}


@pytest.mark.slow
def test_samples_are_edits_by_the_distilled_model_with_the_lora(klein: EditModel, runs: Runs, distilled: Path):
    training = {"learning_rate": 0.02, "samples": SAMPLES, "steps": 4, "sample_every": 4}
    settings = {"sample_base": str(distilled), "sample_steps": 0}
    events = runs.run(klein, "there", settings=settings, **training)
    drawn = pictures(events)
    sampler = [event.total for event in events if isinstance(event, Progress) and event.phase == "sampling"]
    assert set(sampler) == {4}
    (lora,) = (runs.folder / "there").glob("*.safetensors")
    control = Image.open(runs.folder / "there" / "samples" / "control-00.png")
    other = open_model(klein.base_model, distilled)
    for step, path in ((0, None), (4, lora)):
        made = run(edit(other, control, SAMPLES[0]["prompt"], steps=4, guidance=1.0, seed=42, lora=path))[1]
        assert made.tobytes() == drawn[step].tobytes(), step
    here = pictures(runs.run(klein, "here", settings={"sample_steps": 4}, **training))
    assert all(here[step].tobytes() != drawn[step].tobytes() for step in drawn)
    assert drawn[0].tobytes() != drawn[4].tobytes()
    _check_private(runs.folder / "there", lora, distilled)
    assert runs.losses("there") == runs.losses("here"), "the training is the same"
    (first, second) = (runs.weights(name) for name in ("there", "here"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_what_cannot_draw_is_refused_before_anything_is_loaded(
    klein: EditModel, kontext: EditModel, runs: Runs, distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("load_transformer", "load_text_encoder", "load_codec"):
        monkeypatch.setattr(EditModel, name, lambda *_: pytest.fail("loaded"))

    def refused(words: str, source: Path, **params: object) -> None:
        with pytest.raises(BadInput, match=words):
            runs.run(klein, settings={"sample_base": str(source)}, **params)
        assert not (runs.folder / "run").exists()

    with pytest.raises(BadInput, match="cannot be combined with sample_lora"):
        runs.run(klein, settings={"sample_base": str(distilled), "sample_lora": "fast.safetensors"})
    refused("neither a file nor a folder", tmp_path / "nothing")
    refused("use_lora false", distilled, use_lora=False)
    refused("cannot be loaded|has other layers", kontext.folder)
    config = distilled / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 3}))
    refused("has other layers than", distilled)
    file = tmp_path / "lora.safetensors"
    save_file({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 2)}, file)
    refused("sample_base: .* is not a transformer", file)
