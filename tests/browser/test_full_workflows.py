"""The example workflows for full-size models, run for a few steps with model files of the same layout but fewer or
smaller layers, and with ComfyUI's own CLIP class at a small size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel
from playwright.sync_api import Page
from safetensors import safe_open

from trainer.models.edit_model import open_model
from trainer.single_file.key_mapping import marker_tensors

from ..comfyui.conftest import TEST_PACK
from ..comfyui.graphs import SETTINGS, Prompt, node
from ..comfyui.server import PACK, Server, version_of
from ..single_files import FLUX, FLUX_SIZES, KLEIN, KLEIN_SIZES, QWEN, stored, write
from ..trainer.plus_models import EDIT_2511

WORKFLOWS = {
    FLUX: "3_train_kontext",
    QWEN: "4_train_qwen_image_edit",
    EDIT_2511: "6_train_qwen_image_edit_2511",
    KLEIN: "7_train_flux2_klein",
}
FAMILIES = {
    FLUX: "flux-kontext",
    QWEN: "qwen-image-edit",
    EDIT_2511: "qwen-image-edit",
    KLEIN: "flux2-klein",
}
WIDTHS = {FLUX: 64, QWEN: 3584, EDIT_2511: 3584, KLEIN: 192}
DATASETS = dict.fromkeys(WORKFLOWS, "edit_trainer_example") | {EDIT_2511: "edit_trainer_two_images"}
TO_PROMPT = "async (workflow) => { await app.loadGraphData(workflow); return (await app.graphToPrompt()).output }"
FEW_STEPS = {"steps": 2, "sample_every": 2, "sample_width": 64, "sample_height": 64, "lora_rank": 4, "lora_alpha": 4}
SMALL_SIZES = {"resolution": 64, "control_resolution": "target", "sample_steps": 1}
SHORT_INPUTS = {
    "KSampler": {"steps": 1, "cfg": 1.0},
    "CFGGuider": {"cfg": 1.0},
    "Flux2Scheduler": {"steps": 1},
    "EditTrainerEditImage": {"steps": 1, "guidance": 1.0, "width": 64, "height": 64},
    "EditTrainerParams": FEW_STEPS,
}


@pytest.fixture(scope="module")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the oracle nodes and ComfyUI's example image."""
    server = Server(comfyui, tmp_path_factory.mktemp("comfyui"), TEST_PACK)
    shutil.copy(comfyui / "input" / "example.png", server.base / "input")
    for name in set(DATASETS.values()):
        example = pq.read_table(PACK / "example_workflows" / f"{name}.parquet")
        pq.write_table(example.slice(0, 2), server.base / "input" / f"two_of_{name}.parquet")
    yield server
    server.close()


def small_transformer(base_model: str, version: tuple[int, ...]) -> torch.nn.Module:
    """One block of each kind: Kontext and klein at a width of 256, but Qwen-Image, and Kontext before ComfyUI 0.33, at
    the full width that ComfyUI's version assumes."""
    if base_model == KLEIN:
        return Flux2Transformer2DModel(**KLEIN_SIZES)
    if base_model == FLUX:
        heads = {} if version >= (0, 33) else {"num_attention_heads": 24}
        return FluxTransformer2DModel(**FLUX_SIZES | heads)
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(num_layers=1, zero_cond_t=base_model == EDIT_2511)
    transformer = transformer.to_empty(device="cpu")
    for name, parameter in transformer.named_parameters():
        torch.nn.init.constant_(parameter, 1.0) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    return transformer


def shorten(prompt: Prompt, base_model: str) -> tuple[Prompt, dict[str, str]]:
    """The workflow's prompt with few steps and a small CLIP, and its node ids by class."""
    ids = {entry["class_type"]: name for name, entry in prompt.items()}
    for kind in SHORT_INPUTS.keys() & ids.keys():
        prompt[ids[kind]]["inputs"] |= SHORT_INPUTS[kind]
    prompt[ids["EditTrainerLoadDataset"]]["inputs"]["resource"] = f"two_of_{DATASETS[base_model]}.parquet"
    prompt["settings"] = node("EditTrainerSettings", **SETTINGS | SMALL_SIZES)
    prompt[ids["EditTrainerTrain"]]["inputs"]["settings"] = ["settings", 0]
    if base_model == KLEIN:
        prompt[ids["ImageScaleToTotalPixels"]]["inputs"]["megapixels"] = 0.01
    else:
        prompt["latent"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        prompt[ids["KSampler"]]["inputs"]["latent_image"] = ["latent", 0]
    loader = ids["DualCLIPLoader" if base_model == FLUX else "CLIPLoader"]
    reduced = {"family": FAMILIES[base_model], "width": WIDTHS[base_model], "seed": 0}
    prompt[loader] = node("OracleReducedClip", **reduced)
    if base_model == EDIT_2511:  # Its nodes encode every control at a megapixel: minutes with the VAE of a file.
        prompt[ids["VAELoader"]] = node("OracleReducedVae", family=FAMILIES[base_model], seed=0)
    return prompt, ids


@pytest.mark.parametrize("base_model", WORKFLOWS)
def test_a_full_size_workflow_runs_to_its_end(page: Page, server: Server, comfyui: Path, base_model: str) -> None:
    version = version_of(comfyui)
    if base_model == KLEIN and version < (0, 33):
        pytest.skip("ComfyUI before 0.33 does not know klein")
    workflow = json.loads((PACK / "example_workflows" / f"{WORKFLOWS[base_model]}.json").read_text(encoding="utf-8"))
    prompt, ids = shorten(page.evaluate(TO_PROMPT, workflow), base_model)
    models = server.base / "models"
    for folder in ("diffusion_models", "vae"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    file = models / "diffusion_models" / prompt[ids["UNETLoader"]]["inputs"]["unet_name"]
    marker = marker_tensors(open_model(base_model).family.variant.marker)
    write(file, "bf16", stored(base_model, small_transformer(base_model, version)) | marker)
    if vae := prompt[ids["VAELoader"]]["inputs"].get("vae_name"):
        made = server.run({"vae": node("OracleVaeFile", family=FAMILIES[base_model], file=str(models / "vae" / vae))})
        assert made.status == "execution_success", made.details

    begin = server.log.stat().st_size
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert "2 steps done" in result.text(ids["EditTrainerTrain"])
    assert result.outputs[ids["EditTrainerPreviewSamples"]]["images"]
    assert len(saved_images(server, result.outputs)) == 2, "one from ComfyUI's sampler, one from Edit Image"
    log = server.log.read_bytes()[begin:].decode(errors="replace")
    assert "lora key not loaded" not in log
    (lora,) = (server.output / "loras").glob(f"{prompt[ids['EditTrainerTrain']]['inputs']['run_name']}*")
    with safe_open(lora, "pt") as weights:
        assert weights.metadata()["edit_trainer.conditioning"] == "comfyui"


def saved_images(server: Server, outputs: dict[str, Any]) -> list[Path]:
    """Image files that the nodes saved in the output folder."""
    shown = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
    return [path for image in shown if (path := server.output / image["subfolder"] / image["filename"]).is_file()]
