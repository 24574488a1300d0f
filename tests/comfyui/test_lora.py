"""The trained LoRA in ComfyUI's own models: every key is taken, every weight is right, every image is ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from safetensors.torch import save_file

from trainer.lora import LoraAdapter
from trainer.models import family_class

from .graphs import node, training
from .server import Server

FAMILIES = ("tiny/flux-kontext", "tiny/qwen-image-edit")
STRONG = {"learning_rate": 0.02, "steps": 6, "sample_every": 6, "lora_rank": 4, "lora_alpha": 8}
FULL_SIZE = {
    "black-forest-labs/FLUX.1-Kontext-dev": (FluxTransformer2DModel, {"guidance_embeds": True}),
    "Qwen/Qwen-Image-Edit": (QwenImageTransformer2DModel, {}),
}


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
    prompt["guider"] = node("BasicGuider", model=["loader", 0], conditioning=["ours", 2])
    prompt["euler"] = node("KSamplerSelect", sampler_name="euler")
    prompt["sigmas"] = node("ManualSigmas", sigmas=["ours", 1])
    parts = {"noise": ["ours", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    prompt["sampler"] = node("SamplerCustomAdvanced", latent_image=["ours", 3], **parts)
    compared = {"ours": ["ours", 4], "theirs": ["sampler", 0], "untrained": ["untrained", 4]}
    images = {"oracle_image": ["ours", 5], "node_image": ["edit", 0]}
    prompt["difference"] = node("OracleDifference", **compared, **images)
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
    assert report["loaded"] == report["modules"] == len(state) // 2 > 400
