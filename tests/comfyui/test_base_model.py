"""Where a base model's parts come from: what is chosen by itself, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open

from trainer.families.registry import base_model_names

from ..single_files import FLUX, FLUX_SIZES, QWEN, stored, write
from .graphs import Prompt, node, training
from .server import Server, transformer_folder
from .test_faults import refused

TINY_STEPS = {"steps": 2, "sample_every": 2}
SMALL = {"resolution": 64, "control_resolution": "target", "sample_steps": 1}


@pytest.fixture
def folder(server: Server) -> Iterator[Path]:
    """models/diffusion_models, emptied at the end."""
    with transformer_folder(server) as folder:
        yield folder


def kontext_file(path: Path) -> Path:
    torch.manual_seed(0)
    return write(path, "bf16", stored(FLUX, FluxTransformer2DModel(**FLUX_SIZES)))


def on_ports(prompt: Prompt, base_model: str, clip: str, vae: str, transformer: str = "auto") -> Prompt:
    """The prompt with a reduced CLIP and VAE of the named families on its base model."""
    ports = {"clip": ["clip", 0], "vae": ["vae", 0]}
    return prompt | {
        "clip": node("OracleReducedClip", family=clip, width=64, seed=0),
        "vae": node("OracleReducedVae", family=vae, seed=0),
        "model": node("EditTrainerBaseModel", base_model=base_model, transformer=transformer, **ports),
    }


def test_a_new_node_begins_with_a_model_that_is_on_the_disk(server: Server) -> None:
    def default() -> str:
        inputs = server.get("/object_info/EditTrainerBaseModel")["EditTrainerBaseModel"]["input"]["required"]
        return inputs["base_model"][1]["default"]

    assert default() == "tiny/flux-kontext"
    index = server.base / "models" / "diffusers" / "mine" / "model_index.json"
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"_class_name": "FluxKontextPipeline"}), encoding="utf-8")
    assert default() == FLUX
    index.unlink()
    index.parent.rmdir()


def test_an_edit_says_that_it_is_smaller_than_its_image(server: Server) -> None:
    edit = {"prompt": "paint it", "negative_prompt": "", "seed": 1, "steps": 1, "guidance": 0.0, "lora_strength": 1.0}
    edit |= {"model": ["model", 0], "image": ["image", 0]}

    def notes(side: int, width: int) -> list[dict]:
        prompt = {
            "model": node("EditTrainerBaseModel", base_model="tiny/flux-kontext", transformer="auto"),
            "image": node("EmptyImage", width=side, height=side, batch_size=1, color=0),
            "edit": node("EditTrainerEditImage", **edit, width=width, height=width),
            "saved": node("SaveImage", images=["edit", 0], filename_prefix="small"),
        }
        executed = [data for _, kind, data in server.run(prompt).messages if kind == "executed"]
        return next(data["output"]["edit_trainer_notes"] for data in executed if data["node"] == "edit")

    sizes = {"from_width": 1000, "from_height": 1000, "width": 64, "height": 64}
    values = {"field": "width", "base_model": "tiny/flux-kontext"} | sizes
    assert notes(1000, 0) == [{"level": "warning", "code": "editSmaller", "values": values}]
    assert notes(1000, 64) == notes(64, 0) == []


def test_one_port_without_the_other_is_refused(server: Server) -> None:
    prompt = on_ports(training(run_name="one-port"), FLUX, "flux-kontext", "flux-kontext")
    del prompt["model"]["inputs"]["vae"]
    refused(server.run(prompt), "model", "vae: is not connected", "both or neither")


def test_a_tiny_model_takes_no_ports(server: Server) -> None:
    prompt = on_ports(training(run_name="tiny-ports"), "tiny/flux-kontext", "flux-kontext", "flux-kontext")
    refused(server.run(prompt), "model", "tiny/flux-kontext is complete in itself")


@pytest.mark.parametrize("base_model, other", [(FLUX, "qwen-image-edit"), (QWEN, "flux-kontext")])
def test_another_models_clip_and_vae_are_refused_in_one_message(server: Server, base_model: str, other: str) -> None:
    prompt = on_ports(training(run_name="other-ports"), base_model, other, other)
    loader = "DualCLIPLoader" if base_model == FLUX else "CLIPLoader"
    refused(server.run(prompt), "model", "clip:", loader, "vae:", "VAELoader")


def test_a_third_family_follows_from_its_record(server: Server) -> None:
    result = server.run({"third": node("OracleThirdFamily")})
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("third"))
    assert report["own"] == "prompt_embeds pooled_prompt_embeds"
    embedded = [name for name in base_model_names() if name.startswith("tiny/")]
    others = [name for name in base_model_names() if name not in embedded]
    assert report["texts"]["base_models"] == [*others, "example/Trio-Edit", *embedded]
    assert "Qwen-Image-Edit-2509/2511, FLUX.2 [klein], Trio" in report["texts"]["negative_prompt"]
    for other in ("flux-kontext", "qwen-image-edit"):
        assert 'use CLIPLoader with trio, type "trio".' in report[other]
        assert "use VAELoader with trio_vae.safetensors." in report[other]
        assert report[f"{other} only vae"].startswith("vae:")
    assert report["afterwards"]["base_models"] == list(base_model_names())
    assert "Trio" not in report["afterwards"]["negative_prompt"]


def test_comfyui_conditioning_without_ports_is_refused(server: Server) -> None:
    prompt = training(run_name="no-ports", settings={"conditioning": "comfyui"})
    refused(server.run(prompt), "train", "conditioning", "Load Edit Base Model")


def test_auto_takes_the_file_that_is_recognized(server: Server, folder: Path) -> None:
    (folder / "a-kontext.safetensors").write_bytes(b"not a model")
    kontext_file(folder / "flux1-dev-kontext.safetensors")
    prompt = training(run_name="auto-file", params=TINY_STEPS, settings=SMALL)
    prompt = on_ports(prompt, FLUX, "flux-kontext", "flux-kontext")
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert "2 steps done" in result.text("train")
    assert "Warning" not in result.text("train")
    (lora,) = (server.output / "loras").glob("auto-file*")
    with safe_open(lora, "pt") as weights:
        assert weights.metadata()["edit_trainer.conditioning"] == "comfyui"
    again = server.run(prompt)
    assert not again.executed() & {"model", "train"}
    kontext_file(folder / "flux1-dev-kontext.safetensors")
    assert "model" in server.run(prompt).executed(), "a file that was written anew is looked at again"


def test_a_doubtful_file_is_warned_of(server: Server, folder: Path) -> None:
    kontext_file(folder / "flux1-dev.safetensors")
    prompt = training(run_name="doubtful", params=TINY_STEPS | {"cache_text_embeddings": True}, settings=SMALL)
    prompt = on_ports(prompt, FLUX, "flux-kontext", "flux-kontext", "flux1-dev.safetensors")
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert "may not be" in result.text("train")


def test_folders_and_gguf_files_can_be_chosen(server: Server, folder: Path) -> None:
    (folder / "some.gguf").write_bytes(b"GGUF")
    edit, other = (server.base / "models" / "diffusers" / name for name in ("Kontext", "other"))
    for path, pipeline in ((edit, "FluxKontextPipeline"), (other, "StableDiffusionPipeline")):
        path.mkdir(parents=True, exist_ok=True)
        (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    try:
        info = server.get("/object_info/EditTrainerBaseModel")["EditTrainerBaseModel"]
        options = info["input"]["required"]["transformer"][1]["options"]
        # Beside them may be what another test has trained.
        assert [name for name in options if not name.endswith(".safetensors")] == [
            "auto",
            "some.gguf",
            "diffusers/Kontext",
        ]
    finally:
        for path in (edit, other):
            (path / "model_index.json").unlink()


def test_a_fingerprint_names_weights_and_patches(server: Server) -> None:
    result = server.run({"prints": node("OracleFingerprints")})
    assert result.status == "execution_success", result.details
    for kind, prints in json.loads(result.text("prints")).items():
        assert prints["first"] == prints["again"], kind
        assert len({prints["first"], prints["other weights"], prints["patched"]}) == 3, kind
        assert prints["patched"] == prints["patched and loaded"], kind
        assert prints["first"] == prints["first, while the patched one is loaded"], kind


def test_the_page_is_told_what_a_choice_amounts_to(server: Server, folder: Path) -> None:
    def told(**query: str | list[str]) -> str:
        answer = server.get("/edit_trainer/base_model", **query)
        return answer.get("error") or "\n".join(answer["lines"])

    assert "part of the pack" in told(base_model="tiny/flux-kontext")
    assert "with clip and vae connected, a file" in told(base_model=FLUX)
    assert "no file in models/diffusion_models is recognized" in told(base_model=FLUX, connected=["clip", "vae"])
    kontext_file(folder / "flux1-dev-kontext.safetensors")
    found = told(base_model=FLUX, connected=["clip", "vae"])
    assert "flux1-dev-kontext.safetensors" in found
    assert "clip and the vae that are connected" in found
    assert "downloaded" not in found
    assert "downloaded" in told(base_model=FLUX), "what is taken without clip and vae"
    assert told(base_model=FLUX, connected="vae").startswith("clip: is not connected")
    assert "disconnect clip and vae" in told(base_model="tiny/flux-kontext", connected=["clip", "vae"])
