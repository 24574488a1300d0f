"""The saved LoRA: its form, its strength, and that others load it as we drew with it."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.errors import BadInput
from trainer.lora.adapter import LoraAdapter, load_lora
from trainer.lora.layer import LoraLinear
from trainer.models.diffusers_family import from_folder
from trainer.models.family import family_class
from trainer.models.qwen_processor import load_processor
from trainer.tensors import write_tensors

from ..single_files import KLEIN

SAMPLE = [{"ctrl_img_url": "", "prompt": "pair number one 1"}]
KLEIN_4B = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KONTEXT_DEV = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


def randomized(adapter: LoraAdapter) -> LoraAdapter:
    """Both matrices as if trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return adapter


def adapter_of(model, rank: int, alpha: int) -> LoraAdapter:
    transformer = model.load_transformer("cpu", torch.float32)
    targets = model.family.lora_targets("attention+mlp", transformer)
    return randomized(LoraAdapter(transformer, targets, rank, alpha, seed=0))


def deltas(exported: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a loader that knows no alpha adds to each weight."""
    return {
        name.removesuffix(".lora_A.weight"): exported[name.replace("lora_A", "lora_B")] @ exported[name]
        for name in exported
        if "lora_A" in name
    }


def test_alpha_scales_the_saved_file(model):
    plain = deltas(adapter_of(model, rank=16, alpha=16).exported(torch.float32))
    doubled = deltas(adapter_of(model, rank=16, alpha=32).exported(torch.float32))
    assert plain
    for name, delta in plain.items():
        assert torch.allclose(doubled[name], 2 * delta)


class CountedOperations(TorchDispatchMode):
    """Counts operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_samples_are_drawn_with_the_values_of_the_file(model, dtype):
    """As a layer without alpha computes with them; the trained values come back bit for bit."""
    transformer = model.load_transformer("cpu", torch.float32)
    targets = model.family.lora_targets("attention+mlp", transformer)
    adapter = randomized(LoraAdapter(transformer, targets, rank=16, alpha=24, seed=0))
    name, layer = next((name, found) for name, found in transformer.named_modules() if isinstance(found, LoraLinear))
    input = torch.randn(3, layer.base_layer.in_features)
    trained = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
    before, file = layer(input), adapter.exported(dtype)
    a, b = (file[f"transformer.{name}.lora_{half}.weight"].float() for half in "AB")
    with adapter.exported_values(dtype):
        assert torch.equal(layer(input), layer.base_layer(input).addmm(input @ a.t(), b.t()))
        assert all(parameter.dtype == dtype for parameter in adapter.parameters.values())
    assert all(torch.equal(adapter.parameters[name], values) for name, values in trained.items())
    assert torch.equal(layer(input), before)


def test_exported_values_cost_a_few_operations_a_tensor(model):
    adapter = adapter_of(model, rank=4, alpha=6)
    with CountedOperations() as operations, adapter.exported_values(torch.bfloat16):
        pass
    assert operations.count <= 8 * len(adapter.parameters)


@pytest.mark.slow
def test_alpha_scales_the_training_itself(model, runs):
    runs.run(model, "plain", steps=3, lora_rank=4, lora_alpha=4)
    runs.run(model, "strong", steps=3, lora_rank=4, lora_alpha=64)
    plain, strong = runs.losses("plain"), runs.losses("strong")
    assert plain[0] == strong[0]  # B is zero before the first step
    assert plain[1] != strong[1]


def test_a_fresh_adapter_changes_nothing_and_trains_both_matrices(model):
    transformer = model.load_transformer("cpu", torch.float32)
    adapter = LoraAdapter(transformer, model.family.lora_targets("attention+mlp", transformer), 4, 4, seed=3)
    for name, parameter in adapter.parameters.items():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert (parameter.abs().sum() == 0) == (".lora_B." in name)
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert len(trainable) == len(adapter.parameters)


def test_the_adapter_follows_its_seed_and_leaves_the_global_generator_alone(kontext):
    def a_matrices(seed):
        transformer = kontext.load_transformer("cpu", torch.float32)
        adapter = LoraAdapter(transformer, kontext.family.lora_targets("attention", transformer), 4, 4, seed)
        return torch.cat([parameter.flatten() for parameter in adapter.parameters.values()])

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = a_matrices(1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, a_matrices(1))
    assert not torch.equal(first, a_matrices(2))


def pipeline_image(model, lora, control: Image.Image, prompt: str, steps: int, monkeypatch) -> Image.Image:
    """The image of a fresh diffusers pipeline with the saved LoRA."""
    common = {
        "image": control,
        "prompt": prompt,
        "num_inference_steps": steps,
        "height": 64,
        "width": 64,
        "generator": torch.Generator("cpu").manual_seed(42),
    }
    if model.family.info.name == "flux2-klein":
        pipeline = Flux2KleinPipeline.from_pretrained(model.folder, **from_folder(torch.float32))
        pipeline.load_lora_weights(str(lora))
        return pipeline(**common, guidance_scale=1.0, max_sequence_length=32).images[0]
    if model.family.info.name == "flux-kontext":
        pipeline = FluxKontextPipeline.from_pretrained(model.folder)
        pipeline.load_lora_weights(str(lora))
        return pipeline(
            **common, guidance_scale=1.0, max_sequence_length=32, max_area=64**2, _auto_resize=False
        ).images[0]
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (64, 64, None))
    pipeline = QwenImageEditPipeline.from_pretrained(model.folder, processor=load_processor(model.folder))
    pipeline.load_lora_weights(str(lora))
    return pipeline(**common, true_cfg_scale=1.0).images[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank_alpha", [(4, 4), (3, 8)])
def test_diffusers_draws_our_final_sample_from_the_saved_file(model, runs, monkeypatch, rank_alpha):
    rank, alpha = rank_alpha
    settings = {"sample_steps": 3}
    runs.run(model, steps=6, learning_rate=0.02, lora_rank=rank, lora_alpha=alpha, samples=SAMPLE, settings=settings)
    folder = runs.folder / "run"
    control = Image.open(folder / "samples" / "control-00.png")
    lora = folder / "run-000006.safetensors"
    theirs = np.asarray(pipeline_image(model, lora, control, SAMPLE[0]["prompt"], 3, monkeypatch), dtype=int)
    ours = np.asarray(Image.open(folder / "samples" / "step-000006-00.png"), dtype=int)
    first = np.asarray(Image.open(folder / "samples" / "step-000000-00.png"), dtype=int)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - first).max() > 4


@pytest.mark.slow
def test_the_file_says_what_it_is(model, runs):
    runs.run(model, steps=2, lora_rank=4, lora_alpha=8)
    with safe_open(runs.folder / "run" / "run-000002.safetensors", "pt") as file:
        about, names = file.metadata(), list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert all(name.startswith("transformer.") for name in names)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    assert json.loads(about["edit_trainer.request"])["training_params"]["lora_alpha"] == 8
    assert (about["edit_trainer.rank"], about["edit_trainer.alpha"], about["edit_trainer.steps"]) == ("4", "8", "2")
    assert about["edit_trainer.base_model"] == model.base_model
    assert about["edit_trainer.conditioning"] == "diffusers"
    assert about["modelspec.sai_model_spec"] == "1.0.0"
    assert about["modelspec.architecture"] == f"{model.family.info.name}/lora"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base_model", "build"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", lambda: FluxTransformer2DModel(**KONTEXT_DEV)),
        ("Qwen/Qwen-Image-Edit", QwenImageTransformer2DModel),
        (KLEIN, lambda: Flux2Transformer2DModel(**KLEIN_4B)),
    ],
)
@pytest.mark.parametrize("which", ["attention+mlp", "attention", "all-linear"])
def test_full_size_files_have_the_modules_keys_and_shapes(base_model, build, which):
    with torch.device("meta"):
        transformer = build()
    linears = {name: m for name, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = family_class(base_model).lora_targets(None, which, transformer)
    with torch.device("meta"):
        exported = LoraAdapter(transformer, targets, rank=16, alpha=16, seed=0).exported(torch.bfloat16)
    assert len(exported) > (150 if base_model == KLEIN else 400)
    for name, tensor in exported.items():
        module, _, half = name.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
        linear = linears[module]
        assert tuple(tensor.shape) == ((16, linear.in_features) if half == "lora_A" else (linear.out_features, 16))


@pytest.mark.slow
def test_strength_scales_what_is_loaded(kontext, tmp_path):
    path = tmp_path / "lora.safetensors"
    adapter_of(kontext, 4, 4).export(path, torch.float32, {})
    weights = []
    for strength in (1.0, 0.5):
        transformer = kontext.load_transformer("cpu", torch.float32)
        load_lora(transformer, kontext.family, path, strength)
        linear = transformer.transformer_blocks[0].attn.to_q
        weights.append(linear.get_delta_weight("default"))
    assert torch.allclose(weights[0], 2 * weights[1])


def test_files_that_are_no_lora_of_this_model_are_refused(kontext, qwen, tmp_path):
    transformer = kontext.load_transformer("cpu", torch.float32)
    other, plain, text = (tmp_path / f"{name}.safetensors" for name in ("other", "plain", "text"))
    adapter_of(qwen, 4, 4).export(other, torch.float32, {})
    write_tensors(plain, {"weight": torch.zeros(3)})
    text.write_text("<!doctype html>")
    for path, message in ((other, "another model"), (plain, "not a LoRA"), (text, "not a safetensors file")):
        with pytest.raises(BadInput, match=message):
            load_lora(transformer, kontext.family, path)
    with pytest.raises(BadInput, match="does not exist"):
        load_lora(transformer, kontext.family, tmp_path / "nothing.safetensors")
