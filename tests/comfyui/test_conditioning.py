"""With the graph's CLIP and VAE our transformer is given what ComfyUI's own is given in ComfyUI's own edit graph."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from PIL import Image

from trainer.data.resize import Size
from trainer.models.edit_model import open_model

from ..single_files import FLUX, FLUX_SIZES, QWEN, stored, write
from .graphs import Prompt, node
from .server import Server

QWEN_SIZES = {"num_layers": 1, "num_attention_heads": 2, "joint_attention_dim": 64}
FILES = {FLUX: "reduced-flux1-kontext.safetensors", QWEN: "reduced-qwen-image-edit.safetensors"}
SIZES = [(512, 512), (1000, 421), (333, 777), (701, 523)]
PROMPT = "add a (red:1.2) frame"
LONG = " ".join(["a frame of red roses around the ox"] * 60)


@pytest.fixture(scope="module")
def files(server: Server) -> Iterator[dict[str, str]]:
    """A small transformer of each family among ComfyUI's files, by base model."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    made = {FLUX: FluxTransformer2DModel(**FLUX_SIZES), QWEN: QwenImageTransformer2DModel(**QWEN_SIZES)}
    for base_model, transformer in made.items():
        write(folder / FILES[base_model], "fp32", stored(base_model, transformer))
    yield FILES
    for name in FILES.values():
        (folder / name).unlink()


def picture(server: Server, size: tuple[int, int]) -> str:
    """Name of a PNG of noise and gradients in ComfyUI's input folder."""
    width, height = size
    draw = np.random.default_rng(width * height)
    rows, columns = np.mgrid[0:height, 0:width]
    values = np.stack([rows * 255 / height, columns * 255 / width, draw.uniform(0, 255, (height, width))], axis=-1)
    name = f"{width}x{height}.png"
    Image.fromarray(values.astype(np.uint8)).save(server.base / "input" / name)
    return name


def ported(base_model: str, file: str = "auto") -> Prompt:
    """The base model with a reduced CLIP and VAE."""
    family = "flux-kontext" if base_model == FLUX else "qwen-image-edit"
    return {
        "clip": node("OracleReducedClip", family=family, width=64, seed=0),
        "vae": node("OracleReducedVae", family=family, seed=0),
        "model": node(
            "EditTrainerBaseModel", base_model=base_model, transformer=file, clip=["clip", 0], vae=["vae", 0]
        ),
    }


def both_edits(base_model: str, image: str, size: tuple[int, int], prompt: str) -> Prompt:
    """Our edit and ComfyUI's, of one sampler step each, and what their transformers are given."""
    graph = ported(base_model, FILES[base_model])
    graph["watch"] = node("OracleWatch", clip=["clip", 0], run=f"{base_model} {size} {prompt}")
    graph["model"]["inputs"]["clip"] = ["watch", 0]
    graph["native"] = node("OracleFileModel", model=["model", 0])
    graph["image"] = node("LoadImage", image=image)
    own = {"negative_prompt": "", "guidance": 0.0, "width": 0, "height": 0, "lora_strength": 1.0}
    graph["edit"] = node(
        "EditTrainerEditImage", model=["model", 0], image=["image", 0], prompt=prompt, seed=5, steps=1, **own
    )
    target = open_model(base_model).family.target_size(Size(*size), 1024)
    graph["latent"] = node("EmptySD3LatentImage", width=target.width, height=target.height, batch_size=1)
    graph |= flux_graph(prompt) if base_model == FLUX else qwen_graph(prompt)
    graph["noise"] = node("RandomNoise", noise_seed=5)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node("ManualSigmas", sigmas="1.0, 0.0")
    parts = {name: [name, 0] for name in ("noise", "guider", "sigmas")}
    graph["sampler"] = node("SamplerCustomAdvanced", sampler=["euler", 0], latent_image=["latent", 0], **parts)
    graph["seen"] = node("OracleSeen", ours=["edit", 0], theirs=["sampler", 0])
    return graph


def flux_graph(prompt: str) -> Prompt:
    return {
        "scaled": node("FluxKontextImageScale", image=["image", 0]),
        "encoded": node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0]),
        "text": node("CLIPTextEncode", clip=["watch", 0], text=prompt),
        "reference": node("ReferenceLatent", conditioning=["text", 0], latent=["encoded", 0]),
        "guidance": node("FluxGuidance", conditioning=["reference", 0], guidance=2.5),
        "guider": node("BasicGuider", model=["native", 0], conditioning=["guidance", 0]),
    }


def qwen_graph(prompt: str) -> Prompt:
    common = {"clip": ["watch", 0], "vae": ["vae", 0], "image": ["image", 0]}
    return {
        "positive": node("TextEncodeQwenImageEdit", prompt=prompt, **common),
        "negative": node("TextEncodeQwenImageEdit", prompt="", **common),
        "guider": node("CFGGuider", model=["native", 0], positive=["positive", 0], negative=["negative", 0], cfg=4.0),
    }


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("base_model", [FLUX, QWEN])
def test_our_transformer_is_given_what_comfyuis_is_given(
    server: Server, files: dict[str, str], base_model: str, size: tuple[int, int]
) -> None:
    same(server, base_model, size, PROMPT)


def test_a_caption_of_more_than_256_tokens_stays_longer(server: Server, files: dict[str, str]) -> None:
    assert same(server, FLUX, SIZES[0], LONG)[0]["shapes"][1][0][1] > 256


@pytest.mark.parametrize("base_model, prompt", [(QWEN, "a <|image_pad|> frame"), (FLUX, "a frame</s>")])
def test_what_the_clip_takes_for_a_control_token_is_refused(
    server: Server, files: dict[str, str], base_model: str, prompt: str
) -> None:
    graph = both_edits(base_model, picture(server, SIZES[0]), SIZES[0], prompt)
    graph["model"]["inputs"]["clip"] = ["clip", 0]  # nothing would end the watching, which keeps what it watches
    shown = {"shown": node("PreviewImage", images=["edit", 0])}
    result = server.run({name: graph[name] for name in ("clip", "vae", "model", "image", "edit")} | shown)
    assert (result.status, result.details["node_id"]) == ("execution_error", "edit")
    assert "which the graph's CLIP takes for a control token" in result.details["exception_message"]


def same(server: Server, base_model: str, size: tuple[int, int], prompt: str) -> list[dict]:
    result = server.run(both_edits(base_model, picture(server, size), size, prompt))
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("seen"))
    assert len(report) == (1 if base_model == FLUX else 2), report
    for seen in report:
        assert all(ours == theirs for ours, theirs in seen["shapes"]), seen
        assert seen["tokens"] <= 1e-5, seen
        assert seen["text"] <= 1e-5, seen
        assert seen.get("pooled", 0) <= 1e-5, seen
        assert seen["same_ids"], seen
        assert seen.get("rotations", 0) <= 1e-4, seen
    return report
