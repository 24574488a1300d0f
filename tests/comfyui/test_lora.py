"""The trained LoRA in ComfyUI's own models: every key is taken, every weight is right, every image is ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import save_file

from trainer.lora.adapter import LoraAdapter
from trainer.models.edit_model import open_model
from trainer.models.family import family_class

from ..trainer.klein_models import KLEIN_4B
from ..trainer.lora_files import kohya, launched_processes, random_pairs
from .graphs import EXAMPLE, compared_with_sampler, node, training
from .server import Server

KLEIN = "tiny/flux2-klein"
FAMILIES = ("tiny/flux-kontext", "tiny/qwen-image-edit", KLEIN)
KLEIN_4B_SIZES = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
STRONG = {"learning_rate": 0.02, "steps": 6, "sample_every": 6, "lora_rank": 4, "lora_alpha": 8}
FULL_SIZE = {
    "black-forest-labs/FLUX.1-Kontext-dev": (FluxTransformer2DModel, {"guidance_embeds": True}),
    "Qwen/Qwen-Image-Edit": (QwenImageTransformer2DModel, {}),
    KLEIN_4B: (Flux2Transformer2DModel, KLEIN_4B_SIZES),
}


@pytest.fixture(autouse=True)
def known(request: pytest.FixtureRequest, version: tuple[int, int]) -> None:
    if version < (0, 33) and "klein" in request.node.name:
        pytest.skip("ComfyUI before 0.33 does not know klein")


def loaded(base_model: str, targets: str) -> dict:
    """A training, and its LORA_MODEL in ComfyUI's own model by ComfyUI's own LoraModelLoader."""
    name = f"{base_model.rpartition('/')[2]}-{targets}"
    prompt = training(base_model, name, params=STRONG, settings={"lora_targets": targets})
    prompt["comfy"] = node("OracleComfyModel", model=["model", 0])
    loader = {"model": ["comfy", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": False}
    prompt["loader"] = node("LoraModelLoader", **loader)
    return prompt


@pytest.mark.parametrize("targets", ["attention+mlp", "all-linear"])
@pytest.mark.parametrize("base_model", FAMILIES)
def test_comfyui_patches_every_weight_with_alpha_over_rank_b_a(server: Server, base_model: str, targets: str) -> None:
    prompt = loaded(base_model, targets)
    compared = {"base": ["model", 0], "patched": ["loader", 0], "lora": ["train", 1]}
    prompt["patches"] = node("OraclePatches", **compared)
    begin = server.log.stat().st_size
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("patches"))
    assert report["same_keys"], report
    assert report["patches"] == report["modules"] > 0, report
    assert report["worst"] <= 1e-6, report
    log = server.log.read_bytes()[begin:].decode(errors="replace")
    assert "lora key not loaded" not in log
    assert "NOT LOADED" not in log


@pytest.mark.parametrize("base_model", FAMILIES)
def test_comfyuis_sampler_draws_our_latents(server: Server, base_model: str) -> None:
    prompt = loaded(base_model, "attention+mlp")
    edit = {"image": ["dataset", 1], "prompt": "add a red frame", "seed": 3, "steps": 6}
    prompt["one"] = node("ImageFromBatch", image=["dataset", 1], batch_index=0, length=1)
    edit["image"] = ["one", 0]
    prompt["ours"] = node("OracleOurEdit", edit_model=["train", 0], model=["comfy", 0], **edit)
    prompt["untrained"] = node("OracleOurEdit", edit_model=["model", 0], model=["comfy", 0], **edit)
    own = {"negative_prompt": "", "guidance": 0.0, "width": 0, "height": 0, "lora_strength": 1.0}
    prompt["edit"] = node("EditTrainerEditImage", model=["train", 0], **edit | own)
    prompt |= compared_with_sampler("ours", 2)
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("difference"))
    assert report["latents"] <= 1e-3, report
    assert report["lora"] > 1e-2, f"the LoRA makes a difference to begin with: {report}"
    assert report["images"] < 1e-6, f"the node draws what was compared: {report}"


@pytest.mark.parametrize("base_model", FULL_SIZE)
def test_every_key_of_a_full_size_lora_finds_its_weight(server: Server, tmp_path: Path, base_model: str) -> None:
    kind, options = FULL_SIZE[base_model]
    with torch.device("meta"):
        transformer = kind(**options)
    family = family_class(base_model)
    targets = family.lora_targets(family, "all-linear", transformer)
    with torch.device("meta"):
        adapter = LoraAdapter(transformer, targets, 1, 1, 0)
    state = adapter.exported(torch.bfloat16)
    file = tmp_path / "full.safetensors"
    save_file({name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}, file)
    result = server.run({"keys": node("OracleFullSizeKeys", kind=kind.__name__, file=str(file))})
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("keys"))
    assert not report["unknown"]
    assert not report["misfits"]
    assert report["loaded"] == report["modules"] == len(state) // 2
    assert report["loaded"] > (90 if base_model == KLEIN_4B else 400)


def foreign(server: Server, base_model: str, kind: str) -> Path:
    """A LoRA in ComfyUI's list, on every linear layer it can have there, with the keys of kohya or ComfyUI."""
    model = open_model(base_model)
    transformer = model.empty_transformer()
    pairs = random_pairs(transformer, model.family.lora_targets("all-linear", transformer), rank=2)
    flat = kind == "lora_unet_"
    state = kohya(launched_processes(pairs, model.family, transformer), kind, flat=flat)
    file = server.output / "loras" / f"foreign-{base_model.rpartition('/')[2]}-{kind.strip('._')}.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


@pytest.mark.parametrize("kind", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("base_model", FAMILIES)
def test_other_programs_loras_mean_here_what_they_mean_to_comfyui(server: Server, base_model: str, kind: str) -> None:
    file = foreign(server, base_model, kind)
    prompt = {"model": node("EditTrainerBaseModel", base_model=base_model, transformer="auto")}
    prompt["comfy"] = node("OracleComfyModel", model=["model", 0])
    prompt["lora"] = node("OracleConverted", model=["model", 0], file=str(file))
    loaders = {
        "file": node("LoraLoaderModelOnly", model=["comfy", 0], lora_name=file.name, strength_model=1.0),
        "wire": node("LoraModelLoader", model=["comfy", 0], lora=["lora", 0], strength_model=1.0, bypass=False),
    }
    for name, loader in loaders.items():
        compared = {"base": ["model", 0], "patched": [name, 0], "lora": ["lora", 1]}
        prompt |= {name: loader, f"{name} patches": node("OraclePatches", **compared)}
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    for name in loaders:
        report = json.loads(result.text(f"{name} patches"))
        assert report["same_keys"], report
        assert report["patched"] > 0
        assert report["worst"] <= 1e-6, report


@pytest.mark.parametrize("base_model", FAMILIES)
def test_edit_image_and_training_take_other_programs_loras(server: Server, base_model: str) -> None:
    file = foreign(server, base_model, "lora_unet_")
    prompt = training(
        base_model,
        f"goes-on-{base_model.rpartition('/')[2]}",
        params={"steps": 1, "learning_rate": 1e-7, "lora_rank": 4},
        settings={"lora_targets": "all-linear", "init_lora": file.name},
    )
    prompt["lora"] = node("OracleConverted", model=["model", 0], file=str(file))
    prompt["one"] = node("ImageFromBatch", image=["dataset", 1], batch_index=0, length=1)
    asked = {"image": ["one", 0], "prompt": "add a red frame", "negative_prompt": "", "seed": 1, "steps": 2}
    asked |= {"guidance": 0.0, "width": 0, "height": 0, "lora_strength": 1.0}
    ways = {
        "plain": {"model": ["model", 0]},
        "named": {"model": ["model", 0], "lora_name": file.name},
        "wired": {"model": ["model", 0], "lora": ["lora", 0]},
        "converted": {"model": ["model", 0], "lora": ["lora", 1]},
        "trained": {"model": ["train", 0]},
    }
    for name, how in ways.items():
        prompt[name] = node("EditTrainerEditImage", **asked | how)
        prompt[f"saved {name}"] = node("SaveImage", images=[name, 0], filename_prefix=f"{file.stem}-{name}")
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    images = {name: Image.open(server.output / f"{file.stem}-{name}_00001_.png") for name in ways}
    drawn = {name: np.asarray(image, dtype=int) for name, image in images.items()}
    assert np.abs(drawn["named"] - drawn["plain"]).max() > 4
    for name in ("wired", "converted", "trained"):
        assert np.abs(drawn["named"] - drawn[name]).max() <= 1, name


def test_a_lora_by_name_and_one_by_wire_are_one_too_many(server: Server) -> None:
    file = foreign(server, FAMILIES[0], "lora_unet_")
    prompt = {"model": node("EditTrainerBaseModel", base_model=FAMILIES[0], transformer="auto")}
    prompt["dataset"] = node("EditTrainerLoadDataset", **EXAMPLE)
    prompt["lora"] = node("OracleConverted", model=["model", 0], file=str(file))
    prompt["edit"] = node(
        "EditTrainerEditImage",
        **{"model": ["model", 0], "image": ["dataset", 1], "lora": ["lora", 0], "lora_name": file.name},
        **{"prompt": "x", "negative_prompt": "", "seed": 1, "steps": 1, "guidance": 0.0},
        **{"width": 0, "height": 0, "lora_strength": 1.0},
    )
    prompt["saved"] = node("SaveImage", images=["edit", 0], filename_prefix="never")
    result = server.run(prompt)
    assert result.status == "execution_error"
    assert "cannot both be used" in result.details["exception_message"]
