"""FLUX.2 [klein] with several controls against ComfyUI's own edit graph, as its templates have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from trainer.data.resize import Size
from trainer.models.edit_model import open_model
from trainer.models.family import family_class

from ..single_files import KLEIN_SIZES, stored, write
from ..trainer.klein_models import KLEIN_4B
from .graphs import Prompt, node
from .server import Server
from .test_conditioning import LONG, PROMPT, picture
from .test_faults import refused

FILE = "reduced-flux-2-klein-base-4b.safetensors"
CONTROLS = {
    "square": [(512, 512)],
    "wide": [(1000, 421)],
    "large, odd": [(1501, 1123), (333, 777)],
    "tall, odd, wide": [(333, 777), (701, 523), (1000, 421)],
}
STEPS = 2


@pytest.fixture(scope="module")
def file(server: Server, version: tuple[int, int]) -> Iterator[str]:
    """A small transformer among ComfyUI's files."""
    if version < (0, 33):
        pytest.skip("ComfyUI before 0.33 does not know klein")
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write(folder / FILE, "fp32", stored(KLEIN_4B, Flux2Transformer2DModel(**KLEIN_SIZES)))
    yield FILE
    (folder / FILE).unlink()


def ported(clip: str = "flux2-klein", vae: str = "flux2-klein") -> Prompt:
    """The base model with a reduced CLIP and VAE."""
    return {
        "clip": node("OracleReducedClip", family=clip, width=64, seed=0),
        "vae": node("OracleReducedVae", family=vae, seed=0),
        "model": node("EditTrainerBaseModel", base_model=KLEIN_4B, transformer=FILE, clip=["clip", 0], vae=["vae", 0]),
    }


def references(name: str, text: str, images: list[str]) -> Prompt:
    """A text and the latents of images, as the template chains them; the last conditioning is the node `name`."""
    graph: Prompt = {f"{name} 0": node("CLIPTextEncode", clip=["watch", 0], text=text)}
    for index in range(len(images)):
        last = index == len(images) - 1
        graph[name if last else f"{name} {index + 1}"] = node(
            "ReferenceLatent", conditioning=[f"{name} {index}", 0], latent=[f"latent {index}", 0]
        )
    return graph


def both_edits(images: list[str], target: Size, prompt: str, guidance: float) -> Prompt:
    """Our edit and ComfyUI's, of two sampler steps each, and what their transformers are given."""
    graph = ported()
    graph["watch"] = node("OracleWatch", clip=["clip", 0], run=f"{images} {prompt} {guidance}")
    graph["model"]["inputs"]["clip"] = ["watch", 0]
    graph["native"] = node("OracleFileModel", model=["model", 0])
    size = {"width": target.width, "height": target.height}
    own = {"negative_prompt": "", "guidance": guidance, "lora_strength": 1.0, "seed": 5, "steps": STEPS, **size}
    for index, image in enumerate(images):
        graph[f"image {index}"] = node("LoadImage", image=image)
        scaled = {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 1}
        graph[f"scaled {index}"] = node("ImageScaleToTotalPixels", image=[f"image {index}", 0], **scaled)
        graph[f"latent {index}"] = node("VAEEncode", pixels=[f"scaled {index}", 0], vae=["vae", 0])
        own["image" if index == 0 else f"image_{index + 1}"] = [f"image {index}", 0]
    graph["edit"] = node("EditTrainerEditImage", model=["model", 0], prompt=prompt, **own)
    graph |= references("positive", prompt, images) | references("negative", "", images)
    texts = {name: [name, 0] for name in ("positive", "negative")}
    graph["guider"] = node("CFGGuider", model=["native", 0], cfg=guidance, **texts)
    graph["latent"] = node("EmptyFlux2LatentImage", batch_size=1, **size)
    graph["sigmas"] = node("Flux2Scheduler", steps=STEPS, **size)
    graph["noise"] = node("RandomNoise", noise_seed=5)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    parts = {name: [name, 0] for name in ("noise", "guider", "sigmas")}
    graph["sampler"] = node("SamplerCustomAdvanced", sampler=["euler", 0], latent_image=["latent", 0], **parts)
    graph["seen"] = node("OracleSeen", ours=["edit", 0], theirs=["sampler", 0])
    graph["decoded"] = node("VAEDecode", samples=["sampler", 0], vae=["vae", 0])
    latents = {"ours": ["latent", 0], "theirs": ["sampler", 0], "untrained": ["sampler", 0]}
    graph["difference"] = node("OracleDifference", oracle_image=["decoded", 0], node_image=["edit", 0], **latents)
    return graph


def compared(server: Server, sizes: list[tuple[int, int]], prompt: str = PROMPT, guidance: float = 1.0) -> list[dict]:
    images = [picture(server, size) for size in sizes]
    result = server.run(both_edits(images, Size(256, 192), prompt, guidance))
    assert result.status == "execution_success", result.details
    assert json.loads(result.text("difference"))["images"] <= 2 / 255, "the images are the same, rounded to 8 bits"
    return json.loads(result.text("seen"))


@pytest.mark.parametrize("controls", CONTROLS)
def test_our_transformer_is_given_what_comfyuis_is_given(server: Server, file: str, controls: str) -> None:
    report = compared(server, CONTROLS[controls])
    assert len(report) == STEPS, report
    for found in report:
        assert all(ours == theirs for ours, theirs in found["shapes"]), found
        assert found["shapes"][0][0][1] > len(CONTROLS[controls]) * 3900, found
        assert found["shapes"][1][0][1] == 512, found
        assert found["tokens"] <= 1e-4, found
        assert found["text"] <= 1e-5, found
        assert found["same_ids"], found


def test_a_long_text_is_not_cut_off(server: Server, file: str) -> None:
    for found in compared(server, [(512, 512)], prompt=f"{LONG} {LONG}"):
        assert found["shapes"][1][0][1] > 512, found
        assert found["text"] <= 1e-5 and found["same_ids"], found


def test_guidance_combines_as_comfyuis_guider_does(server: Server, file: str) -> None:
    """ComfyUI computes both passes in one, so only the images can be compared."""
    images = [picture(server, (512, 512))]
    prompt = both_edits(images, Size(256, 192), PROMPT, 5.0)
    del prompt["seen"], prompt["watch"]  # nothing would end the watching, which keeps what it watches
    for name in ("model", "positive 0", "negative 0"):
        prompt[name]["inputs"]["clip"] = ["clip", 0]
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert json.loads(result.text("difference"))["images"] <= 2 / 255


def test_the_size_of_an_edit_is_the_first_images_at_a_megapixel(server: Server, file: str) -> None:
    family = family_class(KLEIN_4B, "comfyui")(open_model(KLEIN_4B).family.variant, {})
    sizes = [Size(1000, 421), Size(512, 512)]
    prompt: Prompt = {
        "image": node("LoadImage", image=picture(server, sizes[0])),
        "scaled": node(
            "ImageScaleToTotalPixels", image=["image", 0], upscale_method="lanczos", megapixels=1.0, resolution_steps=1
        ),
        "size": node("GetImageSize", image=["scaled", 0]),
        "latent": node("EmptyFlux2LatentImage", width=["size", 0], height=["size", 1], batch_size=1),
        "vae": node("OracleReducedVae", family="flux2-klein", seed=0),
        "decoded": node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="klein-size"),
    }
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    from PIL import Image

    saved = Image.open(next(Path(server.output).glob("klein-size*.png")))
    assert saved.size == tuple(family.edit_size(sizes))


@pytest.mark.parametrize(
    ("clip", "vae", "words"),
    [
        ("qwen-image-edit", "flux2-klein", 'use CLIPLoader with qwen_3_4b, or qwen_3_8b for the 9B, type "flux2"'),
        ("flux2-klein", "flux-kontext", "use VAELoader with FLUX.2's VAE (flux2-vae.safetensors)"),
    ],
)
def test_a_clip_or_a_vae_of_another_model_is_refused(
    server: Server, file: str, clip: str, vae: str, words: str
) -> None:
    prompt = ported(clip=clip, vae=vae)
    prompt["image"] = node("LoadImage", image=picture(server, (512, 512)))
    own = {"negative_prompt": "", "guidance": 0.0, "width": 0, "height": 0, "lora_strength": 1.0, "seed": 1, "steps": 1}
    prompt["edit"] = node("EditTrainerEditImage", model=["model", 0], image=["image", 0], prompt="x", **own)
    prompt["shown"] = node("PreviewImage", images=["edit", 0])
    refused(server.run(prompt), "model", words)
