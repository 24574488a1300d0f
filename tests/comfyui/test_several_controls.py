"""Qwen-Image-Edit-2509 and -2511 with several controls against ComfyUI's own edit graph, as its templates have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from trainer.models.edit_model import open_model
from trainer.single_file.key_mapping import marker_tensors

from ..single_files import stored, write
from ..trainer.plus_models import EDIT_2509, EDIT_2511
from .graphs import Prompt, compared_with_sampler, node, training
from .server import Server
from .test_conditioning import PROMPT, QWEN_SIZES, picture
from .test_faults import refused

FILES = {EDIT_2509: "reduced_qwen_image_edit_2509.safetensors", EDIT_2511: "reduced_qwen_image_edit_2511.safetensors"}
CONTROLS = {
    "square": [(512, 512)],
    "wide": [(1000, 421)],
    "odd, tall": [(701, 523), (333, 777)],
    "wide, square": [(1000, 421), (512, 512)],
    "tall, odd, wide": [(333, 777), (701, 523), (1000, 421)],
}
EDIT = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "seed": 3,
    "steps": 1,
    "guidance": 1.0,
    "width": 0,
    "height": 0,
    "lora_strength": 1.0,
}


@pytest.fixture(scope="module")
def files(server: Server) -> Iterator[dict[str, str]]:
    """A small transformer among ComfyUI's files for each base model, that of 2511 with its marker."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for base_model, name in FILES.items():
        state = stored(base_model, QwenImageTransformer2DModel(**QWEN_SIZES))
        marker = marker_tensors(open_model(base_model).family.variant.marker)
        write(folder / name, "fp32", state | marker)
    yield FILES
    for name in FILES.values():
        (folder / name).unlink()


def native_text(base_model: str, name: str, prompt: str, images: Prompt) -> Prompt:
    """A prompt with its images, as the base model's template encodes it; its conditioning is the node `name`."""
    text = node("TextEncodeQwenImageEditPlus", clip=["watch", 0], vae=["vae", 0], prompt=prompt, **images)
    if base_model == EDIT_2509:
        return {name: text}
    method = {"reference_latents_method": "index_timestep_zero"}
    return {
        f"{name} text": text,
        name: node("FluxKontextMultiReferenceLatentMethod", conditioning=[f"{name} text", 0], **method),
    }


def both_edits(server: Server, base_model: str, ours: dict[str, str], theirs: dict[str, str]) -> Prompt:
    """Our edit and ComfyUI's, of one sampler step each, of images by the name of their input, and what their
    transformers are given."""
    graph: Prompt = {
        "clip": node("OracleReducedClip", family="qwen-image-edit", width=64, seed=0),
        "vae": node("OracleReducedVae", family="qwen-image-edit", seed=0),
        "watch": node("OracleWatch", clip=["clip", 0], run=f"{base_model} {ours} {theirs}"),
        "model": node(
            "EditTrainerBaseModel",
            base_model=base_model,
            transformer=FILES[base_model],
            clip=["watch", 0],
            vae=["vae", 0],
        ),
        "native": node("OracleFileModel", model=["model", 0]),
    }
    graph |= {image: node("LoadImage", image=image) for image in {*ours.values(), *theirs.values()}}
    shown = {name: [image, 0] for name, image in ours.items()}
    asked = {"prompt": PROMPT, "seed": 5, "steps": 1, "guidance": 4.0, "side": 1024, "target_side": 256}
    graph["edit"] = node("OracleSeveralControls", edit_model=["model", 0], **asked, **shown)
    images = {name: [image, 0] for name, image in theirs.items()}
    graph |= native_text(base_model, "positive", PROMPT, images) | native_text(base_model, "negative", "", images)
    texts = {name: [name, 0] for name in ("positive", "negative")}
    graph["guider"] = node("CFGGuider", model=["native", 0], cfg=4.0, **texts)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node("ManualSigmas", sigmas="1.0, 0.0")
    parts = {"noise": ["edit", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0], "sampler": ["euler", 0]}
    graph["sampler"] = node("SamplerCustomAdvanced", latent_image=["edit", 3], **parts)
    graph["seen"] = node("OracleSeen", ours=["edit", 5], theirs=["sampler", 0])
    return graph


def seen(server: Server, base_model: str, ours: dict[str, str], theirs: dict[str, str]) -> list[dict]:
    result = server.run(both_edits(server, base_model, ours, theirs))
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("seen"))
    assert len(report) == 2, report
    return report


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("base_model", [EDIT_2509, EDIT_2511])
def test_our_transformer_is_given_what_comfyuis_is_given(
    server: Server, files: dict[str, str], base_model: str, controls: str
) -> None:
    images = {f"image{number}": picture(server, size) for number, size in enumerate(CONTROLS[controls], 1)}
    report = seen(server, base_model, images, images)
    for found in report:
        assert all(ours == theirs for ours, theirs in found["shapes"]), found
        assert found["shapes"][0][0][1] > len(images) * 4000, found
        assert found["tokens"] <= 1e-5, found
        assert found["text"] <= 1e-5, found
        assert found["times"] <= 1e-6, found
        assert found["timesteps"] == (2 if base_model == EDIT_2511 else 1), found
        assert found["same_ids"], found
        assert found["rotations"] <= 1e-4, found


def test_comfyui_numbers_images_by_their_input(server: Server, files: dict[str, str]) -> None:
    """Without image1, its text calls image2 "Picture 2"; we number the images that are there."""
    image = picture(server, (512, 512))
    for found in seen(server, EDIT_2509, {"image1": image}, {"image2": image}):
        assert all(ours == theirs for ours, theirs in found["shapes"]), found
        assert found["tokens"] <= 1e-5, found
        assert found["text"] > 1e-3, found


@pytest.fixture(scope="module")
def folder(server: Server) -> Iterator[Path]:
    """A small Qwen-Image-Edit-2511 among ComfyUI's folders."""
    from ..trainer.plus_models import plus_model

    path = server.base / "models" / "diffusers" / "Qwen-Image-Edit-2511"
    yield plus_model(EDIT_2511, open_model("tiny/qwen-image-edit"), path).folder
    shutil.rmtree(path)


def test_a_folder_is_taken_for_the_model_that_it_is(server: Server, folder: Path) -> None:
    inputs = server.get("/object_info/EditTrainerBaseModel")["EditTrainerBaseModel"]["input"]["required"]
    assert inputs["base_model"][1]["default"] == EDIT_2511, "not 2509, which comes before it"
    prompt = training(EDIT_2509, "other-folder")
    prompt["model"]["inputs"]["transformer"] = f"diffusers/{folder.name}"
    refused(server.run(prompt), "model", f"is not {EDIT_2509}: by its config it is {EDIT_2511}; choose that")


def test_edit_image_scales_its_first_image_as_the_templates_do(server: Server, files: dict[str, str]) -> None:
    parts = {"clip": ["watch", 0], "vae": ["vae", 0]}
    prompt: Prompt = {
        "clip": node("OracleReducedClip", family="qwen-image-edit", width=64, seed=0),
        "vae": node("OracleReducedVae", family="qwen-image-edit", seed=0),
        "watch": node("OracleWatch", clip=["clip", 0], run="template"),
        "model": node("EditTrainerBaseModel", base_model=EDIT_2511, transformer=FILES[EDIT_2511], **parts),
        "native": node("OracleFileModel", model=["model", 0]),
        "one": node("LoadImage", image=picture(server, (1000, 300))),
        "two": node("LoadImage", image=picture(server, (333, 777))),
        "scaled": node("FluxKontextImageScale", image=["one", 0]),
        "latent": node("EmptySD3LatentImage", width=256, height=112, batch_size=1),
        "noise": node("RandomNoise", noise_seed=EDIT["seed"]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("ManualSigmas", sigmas="1.0, 0.5, 0.0"),
    }
    images = {"image": ["one", 0], "image_2": ["two", 0], "width": 256, "height": 112}
    prompt["edit"] = node("EditTrainerEditImage", model=["model", 0], **EDIT | images | {"steps": 2})
    prompt |= native_text(EDIT_2511, "positive", PROMPT, {"image1": ["scaled", 0], "image2": ["two", 0]})
    prompt["guider"] = node("BasicGuider", model=["native", 0], conditioning=["positive", 0])
    drawn = {"noise": ["noise", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0], "sampler": ["euler", 0]}
    prompt["sampler"] = node("SamplerCustomAdvanced", latent_image=["latent", 0], **drawn)
    prompt["seen"] = node("OracleSeen", ours=["edit", 0], theirs=["sampler", 0])
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    first, _ = json.loads(result.text("seen"))
    assert all(ours == theirs for ours, theirs in first["shapes"]), first
    assert first["tokens"] <= 1e-5, first
    assert first["text"] <= 1e-5, first
    assert first["same_ids"], first


def test_comfyuis_sampler_draws_our_latents_with_a_trained_lora(server: Server) -> None:
    base_model, side = "tiny/qwen-image-edit-plus", 64
    params = {"learning_rate": 0.02, "steps": 3, "sample_every": 3, "lora_rank": 4, "lora_alpha": 8}
    prompt = training(base_model, "plus", params=params, settings={"lora_targets": "all-linear"})
    prompt["train"]["inputs"].pop("samples")
    prompt["comfy"] = node("OracleComfyModel", model=["model", 0])
    loader = {"model": ["comfy", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": False}
    prompt["loader"] = node("LoraModelLoader", **loader)
    prompt["patches"] = node("OraclePatches", base=["model", 0], patched=["loader", 0], lora=["train", 1])
    for index, name in enumerate(("one", "two")):
        prompt[name] = node("LoadImage", image=picture(server, (side, side + 32 * index)))
    edit = {"prompt": "add a red frame", "seed": 3, "steps": 6, "guidance": 1.0}
    shown = {"side": side, "target_side": side, "image1": ["one", 0], "image2": ["two", 0]}
    for name, model in (("ours", "train"), ("untrained", "model")):
        prompt[name] = node("OracleSeveralControls", edit_model=[model, 0], **edit, **shown)
    images = {"image": ["one", 0], "image_2": ["two", 0]}
    prompt["edit"] = node("EditTrainerEditImage", model=["train", 0], **EDIT | edit | images)
    method = {"reference_latents_method": "index_timestep_zero"}
    prompt["method"] = node("FluxKontextMultiReferenceLatentMethod", conditioning=["ours", 2], **method)
    prompt |= compared_with_sampler("method", 0)
    begin = server.log.stat().st_size
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    patches, report = (json.loads(result.text(name)) for name in ("patches", "difference"))
    assert patches["same_keys"], patches
    assert patches["patches"] == patches["modules"] > 0, patches
    assert patches["worst"] <= 1e-6, patches
    assert report["latents"] <= 1e-3, report
    assert report["lora"] > 1e-2, f"the LoRA makes a difference to begin with: {report}"
    assert report["images"] < 1e-6, f"Edit Image draws what was compared: {report}"
    log = server.log.read_bytes()[begin:].decode(errors="replace")
    assert "lora key not loaded" not in log
    assert "NOT LOADED" not in log
