"""Training that goes on from a LoRA file: it starts at the file, exactly, and learns from there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainer.data.resize import Size
from trainer.errors import BadInput
from trainer.events import Finished, Notice
from trainer.inference import edit
from trainer.lora.adapter import LoraAdapter
from trainer.models.types import Grid, PackedLatents
from trainer.quantization.formats import Quantization, QuantizedWeight
from trainer.quantization.linear import QuantizedLinear, dequantize_layers
from trainer.tensors import write_tensors

from .lora_files import RANK, kohya, launched_processes, portable, random_pairs

PROMPT = {"ctrl_img_url": "", "prompt": "pair number one 1"}
FP32 = {"save_dtype": "fp32"}


def trained_pairs(model, which: str = "attention+mlp", rank: int = RANK):
    transformer = model.empty_transformer()
    return random_pairs(transformer, model.family.lora_targets(which, transformer), rank)


def written(model, folder, kind: str = "ours", which: str = "attention+mlp", rank: int = RANK):
    """A LoRA file, and the pairs in it."""
    pairs = trained_pairs(model, which, rank)
    state = portable(pairs)
    if kind == "kohya":
        state = kohya(launched_processes(pairs, model.family, model.empty_transformer()))
    folder.mkdir(exist_ok=True)
    file = folder / f"{kind}.safetensors"
    write_tensors(file, state)
    return file, pairs


def drawn(model, control, **how):
    drawing = edit(model, control, PROMPT["prompt"], size=Size(64, 64), steps=2, **how)
    while True:
        try:
            next(drawing)
        except StopIteration as end:
            return np.asarray(end.value, dtype=int)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "kohya"])
def test_the_first_sample_is_the_files_and_the_training_goes_on_from_it(model, runs, tmp_path, kind):
    file, pairs = written(model, tmp_path / "files", kind)
    settings = FP32 | {"init_lora": str(file)}
    runs.run(model, kind, steps=3, lora_rank=RANK + 2, lora_alpha=5, samples=[PROMPT], settings=settings)
    runs.run(model, "fresh", steps=3, lora_rank=RANK + 2, lora_alpha=5, samples=[PROMPT], settings=FP32)
    folder = runs.folder / kind / "samples"
    control = Image.open(folder / "control-00.png").convert("RGB")
    first = np.asarray(Image.open(folder / "step-000000-00.png"), dtype=int)
    fresh = np.asarray(Image.open(runs.folder / "fresh" / "samples" / "step-000000-00.png"), dtype=int)
    assert np.abs(first - drawn(model, control, lora=file)).max() <= 1
    assert np.abs(fresh - drawn(model, control)).max() <= 1
    assert np.abs(first - fresh).max() > 4
    assert runs.losses(kind)[0] != runs.losses("fresh")[0]
    weights = runs.weights(kind)
    assert len(weights) == 2 * len(pairs)
    for name, (a, b) in pairs.items():
        delta = weights[f"transformer.{name}.lora_B.weight"] @ weights[f"transformer.{name}.lora_A.weight"]
        assert torch.allclose(delta, b @ a, atol=0.05), name
        assert not torch.equal(delta, b @ a)


@pytest.mark.slow
def test_both_ways_of_writing_it_give_the_same_training(model, runs, tmp_path):
    for kind in ("ours", "kohya"):
        file, _ = written(model, tmp_path / "files", kind)
        runs.run(model, kind, steps=3, lora_rank=RANK, settings={"init_lora": str(file)})
    assert runs.losses("ours") == runs.losses("kohya")


def test_a_lower_rank_is_extended_exactly(model):
    pairs = trained_pairs(model)
    transformer = model.load_transformer("cpu", torch.float32)
    targets = model.family.lora_targets("attention+mlp", transformer)
    chosen = dict(list(pairs.items())[1:])
    (left,) = set(pairs) - set(chosen)
    adapter = LoraAdapter(transformer, targets, RANK + 3, RANK + 3, 1, portable(chosen))
    for name, (a, b) in chosen.items():
        own_a, own_b = (adapter.parameters[f"{name}.lora_{half}.weight"] for half in "AB")
        assert torch.equal(own_b[:, :RANK], b)
        assert torch.equal(own_a[:RANK], a)
        assert not own_b[:, RANK:].any()
        assert own_a[RANK:].ne(0).all()
        assert torch.allclose(own_b @ own_a, b @ a, rtol=0, atol=1e-6)
    assert not adapter.parameters[f"{left}.lora_B.weight"].any()


def test_the_first_values_are_float32_on_a_bf16_base(model):
    starts = []
    for dtype in (torch.float32, torch.bfloat16):
        transformer = model.load_transformer("cpu", dtype)
        targets = model.family.lora_targets("attention", transformer)
        starts.append(LoraAdapter(transformer, targets, 4, 4, 1).parameters)
    for name, parameter in starts[1].items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, starts[0][name])
        if ".lora_A." in name:
            assert not torch.equal(parameter, parameter.bfloat16().float())


def test_what_does_not_fit_the_training_is_refused_before_anything_is_loaded(model, runs, tmp_path, monkeypatch):
    wide, _ = written(model, tmp_path / "wide", which="all-linear", rank=6)
    for name in ("load_transformer", "load_text_encoder", "load_codec"):
        monkeypatch.setattr(type(model), name, lambda *_: pytest.fail("loaded"))

    def refused(message, init_lora=wide, **params):
        settings = {"init_lora": str(init_lora), "lora_targets": params.pop("lora_targets", "all-linear")}
        with pytest.raises(BadInput, match=message):
            runs.run(model, settings=settings, **params)
        assert not (runs.folder / "run").exists()

    refused("set lora_rank to 6", lora_rank=4)
    # FLUX.2's blocks have no modulation of their own, so the smaller choice trains all of it.
    enough = "attention\\+mlp" if model.family.info.name == "flux2-klein" else "all-linear"
    refused(f'set lora_targets to "{enough}"', lora_rank=6, lora_targets="attention")
    refused("use_lora false", use_lora=False)
    refused("no file", init_lora=tmp_path / "nothing.safetensors")
    every = tmp_path / "every.safetensors"
    write_tensors(every, portable(random_pairs(model.empty_transformer())))
    refused("cannot be trained at all", init_lora=every, lora_rank=4)


@pytest.mark.slow
def test_the_run_follows_the_files_content_not_its_place(kontext, runs, tmp_path):
    file, _ = written(kontext, tmp_path / "files")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    runs.run(kontext, steps=2, settings={"init_lora": str(file)})
    (again,) = runs.run(kontext, steps=2, settings={"init_lora": str(copy)})
    assert isinstance(again, Finished)
    write_tensors(copy, portable(trained_pairs(kontext, "attention")))
    other = runs.run(kontext, steps=2, settings={"init_lora": str(copy)})
    assert other[-1].run_dir.name == "run-2"
    runs.run(kontext, steps=4, settings={"init_lora": str(file)})
    assert len(runs.losses()) == 4
    with safe_open(again.weights, "pt") as opened:
        said = json.loads(opened.metadata()["edit_trainer.settings"])
    assert said["init_lora"] == "ours.safetensors"


@pytest.mark.slow
def test_modules_that_change_no_picture_are_left_out(qwen, runs, tmp_path):
    transformer = qwen.empty_transformer()
    blocks = r"transformer_blocks\.\d+\.(attn\..*|(img|txt)_mlp\..*)"
    file = tmp_path / "every.safetensors"
    write_tensors(file, portable(random_pairs(transformer, blocks)))
    events = runs.run(qwen, steps=1, samples=[PROMPT], settings=FP32 | {"init_lora": str(file)})
    assert any(
        "4 modules that have no effect on images" in event.message for event in events if isinstance(event, Notice)
    )
    control = Image.open(runs.folder / "run" / "samples" / "control-00.png").convert("RGB")
    first = np.asarray(Image.open(runs.folder / "run" / "samples" / "step-000000-00.png"), dtype=int)
    assert np.abs(first - drawn(qwen, control, lora=file)).max() <= 1


def quantized(transformer: torch.nn.Module, kind: str) -> torch.nn.Module:
    """Every linear layer of the blocks on codes."""
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, torch.nn.Linear) and "blocks." in name:
            scale = layer.weight.abs().max() / (127 if kind == "int8_tensorwise" else 448)
            quantized = layer.weight / scale
            quantized = (
                quantized.round().to(torch.int8) if kind == "int8_tensorwise" else quantized.to(torch.float8_e4m3fn)
            )
            weight = QuantizedWeight(quantized.detach(), scale.detach(), Quantization(kind))
            transformer.set_submodule(name, QuantizedLinear(weight, layer.in_features, layer.bias))
    return transformer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8_tensorwise", "float8_e4m3fn"])
def test_a_lora_on_quantized_layers_learns_as_on_their_values(model, kind):
    results = []
    for plain in (False, True):
        transformer = quantized(model.load_transformer("cpu", torch.float32), kind)
        if plain:
            dequantize_layers(transformer, torch.float32)
        targets = model.family.lora_targets("attention+mlp", transformer)
        adapter = LoraAdapter(transformer, targets, RANK, 8, 1, portable(trained_pairs(model)))
        assert {parameter.dtype for parameter in adapter.parameters.values()} == {torch.float32}
        generator = torch.Generator().manual_seed(2)
        config = model.empty_transformer().config
        channels, width = config["in_channels"], config["joint_attention_dim"]
        image, control = (
            PackedLatents(torch.randn(1, 16, channels, generator=generator), Grid(4, 4)) for _ in range(2)
        )
        text = {"prompt_embeds": torch.randn(1, 6, width, generator=generator)}
        if model.family.info.name == "flux-kontext":
            text["pooled_prompt_embeds"] = torch.randn(1, 32, generator=generator)
        velocity = model.family.predict(transformer, image, [control], text, torch.tensor([0.6]), 2.0)
        velocity.square().mean().backward()
        results.append([velocity, *(parameter.grad for parameter in adapter.parameters.values())])
        frozen = [p for p in transformer.parameters() if not p.requires_grad]
        assert all(parameter.grad is None for parameter in frozen)
    for ours, expected in zip(*results, strict=True):
        assert torch.linalg.vector_norm(ours - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
