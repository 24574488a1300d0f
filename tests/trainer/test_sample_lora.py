"""A LoRA that is applied only while samples are drawn."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer.cli.demo import psnr
from trainer.config.public import public_settings
from trainer.data.resize import Size
from trainer.errors import BadInput, RunFailed
from trainer.events import Finished, Notice, Sample, drain
from trainer.inference import edit
from trainer.single_file.header import open_weights

SAMPLES = [{"ctrl_img_url": "", "prompt": "invert it"}]
RUN = {"steps": 2, "sample_every": 2, "learning_rate": 0.01, "samples": SAMPLES}


def speed_lora(runs: Any, model: Any, **settings: Any) -> Path:
    """A LoRA that changes much, on all layers, those of the modulation too."""
    options = {"lora_targets": "all-linear", "save_dtype": "fp32"} | settings
    runs.run(model, "speed", settings=options, steps=2, sample_every=100, learning_rate=0.1)
    path = runs.folder / "speed.safetensors"
    save_file(load_file(runs.folder / "speed" / "speed-000002.safetensors"), path)
    return path


def drawn(runs: Any, name: str, step: int) -> Image.Image:
    return Image.open(io.BytesIO((runs.folder / name / "samples" / f"step-{step:06d}-00.png").read_bytes()))


def with_lora(path: Path, **settings: Any) -> dict[str, Any]:
    return {"sample_lora": str(path), "sample_lora_steps": 2, "sample_lora_guidance": 1.0, **settings}


@pytest.mark.slow
@pytest.mark.parametrize("use_lora", [True, False])
def test_it_changes_samples_and_no_training(model, runs, use_lora):
    path = speed_lora(runs, model)
    plain = {"sample_steps": 2, "sample_guidance": 1.0, "save_dtype": "fp32"}
    runs.run(model, "plain", settings=plain, use_lora=use_lora, **RUN)
    fast = with_lora(path, sample_steps=5, sample_guidance=4.0, save_dtype="fp32")
    events = runs.run(model, "fast", settings=fast, use_lora=use_lora, **RUN)
    assert sum(isinstance(event, Sample) for event in events) == 2
    assert runs.losses("fast") == runs.losses("plain")
    one, two = (load_file(runs.folder / name / f"{name}-000002.safetensors") for name in ("plain", "fast"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for step in (0, 2):
        assert drawn(runs, "fast", step).tobytes() != drawn(runs, "plain", step).tobytes()
    assert drawn(runs, "fast", 0).tobytes() != drawn(runs, "fast", 2).tobytes(), "the trained LoRA is below it"
    off = fast | {"sample_lora_strength": 0.0}
    runs.run(model, "off", settings=off, use_lora=use_lora, **RUN)
    for step in (0, 2):
        assert drawn(runs, "off", step).tobytes() == drawn(runs, "plain", step).tobytes()


@pytest.mark.slow
def test_a_sample_before_training_is_an_edit_with_that_lora(kontext, runs):
    path = speed_lora(runs, kontext)
    runs.run(kontext, "fast", settings=with_lora(path, sample_lora_strength=0.7), **RUN)
    control = Image.open(runs.folder / "fast" / "samples" / "control-00.png").convert("RGB")
    sample = drawn(runs, "fast", 0)
    options: Any = {"steps": 2, "guidance": 1.0, "seed": 42, "size": Size(*sample.size)}
    with_it = drain(edit(kontext, control, "invert it", lora=path, lora_strength=0.7, **options))
    without = drain(edit(kontext, control, "invert it", **options))
    assert psnr(sample, with_it) > 35  # the LoRA is rounded to bf16
    assert psnr(sample, without) < psnr(sample, with_it) - 10


@pytest.mark.slow
def test_it_is_applied_to_weights_in_host_memory(kontext, runs):
    path = speed_lora(runs, kontext)
    for name, offload in (("all", "none"), ("hosted", "blocks")):
        runs.run(kontext, name, settings=with_lora(path, offload=offload), **RUN)
    for step in (0, 2):
        assert drawn(runs, "all", step).tobytes() == drawn(runs, "hosted", step).tobytes()


def test_a_file_that_is_not_there_or_no_lora_is_refused(kontext, runs):
    with pytest.raises(BadInput, match=r"sample_lora: there is no file .*gone.safetensors"):
        runs.run(kontext, settings=with_lora(runs.folder / "gone.safetensors"), **RUN)
    other = runs.folder / "other.safetensors"
    save_file({"nothing.lora_A.weight": torch.zeros(2, 2), "nothing.lora_B.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(BadInput, match=r"sample_lora: .*other.safetensors"):
        runs.run(kontext, settings=with_lora(other), **RUN)
    save_file({f"{name}": tensor.to(torch.int8) for name, tensor in _one_layer(kontext).items()}, other)
    with pytest.raises(BadInput, match=r"sample_lora: .*other.safetensors has whole numbers in .*int8"):
        runs.run(kontext, settings=with_lora(other), **RUN)
    assert not (runs.folder / "run" / "request.json").exists()


@pytest.mark.parametrize("setting", ["init_lora", "sample_lora", "sample_base"])
def test_files_that_settings_name_may_be_in_the_home_and_faults_name_the_setting(kontext, runs, monkeypatch, setting):
    monkeypatch.setenv("HOME", str(runs.folder))
    monkeypatch.setenv("USERPROFILE", str(runs.folder))
    with pytest.raises(BadInput, match=f"{setting}: .*{runs.folder.name}.*gone"):
        runs.run(kontext, settings={setting: "~/gone"}, **RUN)
    (runs.folder / "cut.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    for name, why in (("~/cut.safetensors", "cut.safetensors"), ("x" * 300, "File name too long")):
        with pytest.raises(BadInput, match=f"{setting}: .*{why}"):
            runs.run(kontext, settings={setting: name}, **RUN)


def _one_layer(model: Any, value: float = 1.0) -> dict[str, torch.Tensor]:
    """A LoRA of rank 1 of the transformer's last layer of attention."""
    layers = model.empty_transformer().named_modules()
    name, layer = [(name, layer) for name, layer in layers if name.endswith("attn.to_q")][-1]
    a, b = torch.arange(layer.in_features)[None] * value, torch.full((layer.out_features, 1), value)
    return {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}


def test_samples_that_are_no_numbers_are_said_and_the_training_goes_on(kontext, runs):
    path = runs.folder / "large.safetensors"
    save_file(_one_layer(kontext, 1e19), path)
    events = runs.run(kontext, settings=with_lora(path), **RUN)
    said = [event.message for event in events if isinstance(event, Notice)]
    assert [message.partition(" is drawn")[0] for message in said] == ["Sample 0 of step 0", "Sample 0 of step 2"]
    assert "no finite numbers" in said[0] and "strength of the LoRA" in said[0]
    assert drawn(runs, "run", 0).getcolors() == [(64 * 64, (0, 0, 0))]
    assert isinstance(events[-1], Finished) and events[-1].step == 2
    control = Image.new("RGB", (64, 64))
    with pytest.raises(RunFailed, match="no finite numbers"):
        drain(edit(kontext, control, "x", lora=path, steps=2, guidance=1.0, seed=1, size=Size(64, 64)))


@pytest.mark.slow
def test_its_folder_stays_private(kontext, runs):
    path = speed_lora(runs, kontext)
    runs.run(kontext, settings=with_lora(path), **RUN)
    metadata = open_weights(runs.folder / "run" / "run-000002.safetensors", "LoRA file").metadata
    assert json.loads(metadata["edit_trainer.settings"])["sample_lora"] == path.name
    saved = json.loads((runs.folder / "run" / "settings.json").read_text())
    assert saved["sample_lora"] == str(path)
    assert public_settings(saved)["sample_lora"] == path.name
    with closing(runs.events(kontext, "again", settings=with_lora(path), **RUN)) as events:
        assert not [event for event in events if isinstance(event, Notice) and str(path) in event.message]
