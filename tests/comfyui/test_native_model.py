"""Edit Model (as MODEL) hands out what ComfyUI's own loaders make of the same files: the same latents, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from safetensors.torch import load_file

from trainer.families.records import CONFIGS

from ..opened_files import opened_files
from ..single_files import FLUX, FLUX_SIZES, QWEN, Tensors, stored, write
from ..trainer.plus_models import EDIT_2511
from ..trainer.test_single_file import write_gguf
from .graphs import Prompt, node, training
from .server import Server, find_python, transformer_folder
from .test_faults import refused
from .test_lora import STRONG, foreign

KONTEXT_FILE, QWEN_FILE, MARKED_FILE = (f"native-{name}.safetensors" for name in ("kontext", "qwen-edit", "qwen-2511"))
MARKER = "__index_timestep_zero__"
SMALL = {"resolution": 64, "control_resolution": "target", "sample_steps": 1, "lora_targets": "attention"}
FAMILIES = {FLUX: ("flux-kontext", 64), QWEN: ("qwen-image-edit", 3584), EDIT_2511: ("qwen-image-edit", 3584)}
"""Family of a base model's CLIP and VAE, and the width of its text embeddings in the files below."""


@pytest.fixture(scope="module")
def folder(server: Server) -> Iterator[Path]:
    """models/diffusion_models, emptied at the end."""
    with transformer_folder(server) as folder:
        yield folder


@pytest.fixture(scope="module")
def kontext(folder: Path, version: tuple[int, ...]) -> FluxTransformer2DModel:
    """One block of each kind of Kontext, narrow if ComfyUI opens that, which is also a file."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(**FLUX_SIZES | ({} if version >= (0, 33) else {"num_attention_heads": 24}))
    write(folder / KONTEXT_FILE, "bf16", stored(FLUX, transformer))
    return transformer


@pytest.fixture(scope="module")
def qwen(folder: Path) -> Tensors:
    """One block of Qwen-Image-Edit, whose width is fixed in ComfyUI, which is also a file."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(num_layers=1)
    transformer = transformer.to_empty(device="cpu")
    for name, parameter in transformer.named_parameters():
        torch.nn.init.constant_(parameter, 1.0) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    state = {name: tensor.bfloat16() for name, tensor in stored(QWEN, transformer).items()}
    write(folder / QWEN_FILE, "bf16", state)
    return state


def ported(base_model: str, file: str) -> Prompt:
    """A base model from a file or folder, with a reduced CLIP and VAE, and the conditioning of an edit by them."""
    family, width = FAMILIES[base_model]
    parts = {"clip": ["clip", 0], "vae": ["vae", 0]}
    return {
        "clip": node("OracleReducedClip", family=family, width=width, seed=0),
        "vae": node("OracleReducedVae", family=family, seed=0),
        "model": node("EditTrainerBaseModel", base_model=base_model, transformer=file, **parts),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="add a red frame"),
        "image": node("EmptyImage", width=64, height=64, batch_size=1, color=0x3080F0),
        "encoded": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
        "reference": node("ReferenceLatent", conditioning=["text", 0], latent=["encoded", 0]),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    }


def native(model: str, strength: float = 1.0, **inputs: object) -> Prompt:
    return node("EditTrainerNativeModel", model=[model, 0], lora_strength=strength, **inputs)


def patched(model: str, strength: float) -> Prompt:
    loader = {"model": [model, 0], "lora": ["train", 1], "strength_model": strength, "bypass": False}
    return node("LoraModelLoader", **loader)


def drawn(server: Server, prompt: Prompt, *models: str) -> list[torch.Tensor]:
    """The latents that ComfyUI's KSampler draws with each of the prompt's MODELs."""
    own = {"seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    own |= {"positive": ["reference", 0], "negative": ["reference", 0], "latent_image": ["latent", 0]}
    for name in models:
        prompt[f"sampler {name}"] = node("KSampler", model=[name, 0], **own)
        prompt[f"saved {name}"] = node("SaveLatent", samples=[f"sampler {name}", 0], filename_prefix="native")
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    files = [result.outputs[f"saved {name}"]["latents"][0]["filename"] for name in models]
    return [load_file(server.output / file)["latent_tensor"] for file in files]


def equal(latents: list[torch.Tensor]) -> bool:
    assert all(latent.isfinite().all() for latent in latents)
    return all(torch.equal(latents[0], other) for other in latents[1:])


def trained(base_model: str, file: str, run_name: str) -> Prompt:
    """A training of a few steps on a file with a reduced CLIP and VAE."""
    params = {"learning_rate": 0.05, "steps": 2, "sample_every": 2}
    prompt = training(base_model, run_name, params=params, settings=SMALL) | ported(base_model, file)
    del prompt["train"]["inputs"]["samples"]
    return prompt


def compare_with_loaders(server: Server, base_model: str, file: str) -> None:
    run = f"native-{Path(file).stem}"
    prompt = trained(base_model, file, run)
    prompt |= {
        "theirs": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "their trained": patched("theirs", 1.0),
        "their half": patched("theirs", 0.5),
        "plain": native("model"),
        "off": native("train", 0.0),
        "worn": native("train"),
        "by wire": native("model", lora=["train", 1]),
        "half": native("train", 0.5),
    }
    names = ("theirs", "plain", "off", "their trained", "worn", "by wire", "their half", "half")
    plain, worn, half = (latents := drawn(server, prompt, *names))[:3], latents[3:6], latents[6:]
    assert equal(plain)
    assert equal(worn)
    assert equal(half)
    assert len({latent[0].numpy().tobytes() for latent in (plain, worn, half)}) == 3
    (lora,) = (server.output / "loras").glob(f"{run}-*")
    prompt["by file"] = node("LoraLoaderModelOnly", model=["theirs", 0], lora_name=lora.name, strength_model=1.0)
    assert equal([worn[0], *drawn(server, prompt, "by file")])


def test_kontext_is_that_of_comfyuis_loaders(server: Server, kontext: FluxTransformer2DModel) -> None:
    compare_with_loaders(server, FLUX, KONTEXT_FILE)


def test_qwen_image_edit_is_that_of_comfyuis_loaders(server: Server, qwen: Tensors) -> None:
    compare_with_loaders(server, QWEN, QWEN_FILE)


def test_a_2511_is_one_without_its_mark_too(server: Server, folder: Path, qwen: Tensors) -> None:
    write(folder / MARKED_FILE, "bf16", qwen | {MARKER: torch.tensor([])})
    prompt = ported(EDIT_2511, QWEN_FILE)
    for name, file in (("marked", MARKED_FILE), ("unmarked", QWEN_FILE)):
        prompt[name] = node("UNETLoader", unet_name=file, weight_dtype="default")
    prompt["native"] = native("model")
    marked, unmarked, ours = drawn(server, prompt, "marked", "unmarked", "native")
    assert torch.equal(ours, marked)
    assert not torch.equal(ours, unmarked)
    prompt = ported(EDIT_2511, MARKED_FILE) | {"native": native("model")}
    assert torch.equal(*drawn(server, prompt, "native"), marked)


def test_the_shards_of_a_folder_are_one_model(
    server: Server, version: tuple[int, ...], kontext: FluxTransformer2DModel
) -> None:
    place = server.base / "models" / "diffusers" / "native-shards"
    (place / "transformer").mkdir(parents=True)
    (place / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}), encoding="utf-8")
    shutil.copytree(CONFIGS / "flux-kontext" / "vae", place / "vae")
    kontext.bfloat16().save_pretrained(place / "transformer", max_shard_size="1MB")
    kontext.float()
    try:
        assert len(list((place / "transformer").glob("*.safetensors"))) > 2
        prompt = ported(FLUX, f"diffusers/{place.name}")
        prompt |= {
            "theirs": node("UNETLoader", unet_name=KONTEXT_FILE, weight_dtype="default"),
            "native": native("model"),
        }
        if version >= (0, 33):  # which opens a model's files once more, for several GPUs
            prompt["cloned"] = node("OracleDeepClone", model=["native", 0])
        assert equal(drawn(server, prompt, *({"theirs", "native", "cloned"} & prompt.keys())))
    finally:
        shutil.rmtree(place)


@pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")
def test_another_strength_opens_nothing_again(server: Server, folder: Path, kontext: FluxTransformer2DModel) -> None:
    prompt = trained(FLUX, KONTEXT_FILE, "native-strengths")
    with opened_files(folder) as opened:
        drawn(server, prompt | {"native": native("train", 1.0)}, "native")
    assert opened == {KONTEXT_FILE}
    with opened_files(folder) as opened:
        drawn(server, prompt | {"native": native("train", 0.25)}, "native")
        drawn(server, prompt | {"native": native("model")}, "native")
    assert not opened
    write(folder / KONTEXT_FILE, "bf16", stored(FLUX, kontext))
    with opened_files(folder) as opened:
        drawn(server, prompt | {"native": native("model")}, "native")
    assert opened == {KONTEXT_FILE}, "it was written anew"


def edited(prompt: Prompt) -> Prompt:
    """The trained model's own edit of an image, whose conditioning ComfyUI's sampler gets too."""
    edit = {"image": ["one", 0], "prompt": "add a red frame", "seed": 3, "steps": 2}
    return prompt | {
        "one": node("ImageFromBatch", image=["dataset", 1], batch_index=0, length=1),
        "native": native("train"),
        "ours": node("OracleOurEdit", edit_model=["train", 0], model=["native", 0], **edit),
        "reference": node("FluxGuidance", conditioning=["ours", 2], guidance=1.0),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    }


def test_a_full_fine_tune_is_its_own_model(server: Server, version: tuple[int, ...]) -> None:
    prompt = training(run_name="native-full", params=STRONG | {"use_lora": False, "learning_rate": 1e-3})
    if version < (0, 33):
        refused(server.run(prompt | needed("train")), "native", "tiny/flux-kontext", "Edit Image does")
        return
    drawn(server, edited(prompt), "native")
    (file,) = (server.output / "diffusion_models").glob("native-full*")
    prompt["theirs"] = node("UNETLoader", unet_name=file.name, weight_dtype="default")
    prompt["base"] = native("model")
    theirs, ours, base = drawn(server, edited(prompt), "theirs", "native", "base")
    assert torch.equal(theirs, ours)
    assert not torch.equal(theirs, base)


def needed(model: str, **inputs: object) -> Prompt:
    """The MODEL of an EDIT_MODEL, and an output node that needs it."""
    saved = node("ModelSave", model=["native", 0], filename_prefix="never")
    return {"native": native(model, **inputs), "saved native": saved}


def opened(base_model: str, file: str = "auto") -> Prompt:
    return {"model": node("EditTrainerBaseModel", base_model=base_model, transformer=file)}


@pytest.mark.parametrize("base_model", ["tiny/qwen-image-edit", "tiny/qwen-image-edit-plus"])
def test_a_model_smaller_than_comfyuis_is_refused(server: Server, base_model: str) -> None:
    result = server.run(opened(base_model) | needed("model"))
    refused(result, "native", base_model, "does not open", "size mismatch", "Edit Image does", "full size only")


def test_a_file_that_comfyui_does_not_open_is_refused(
    server: Server, folder: Path, kontext: FluxTransformer2DModel
) -> None:
    file = write(folder / "prefixed.safetensors", "bf16, diffusion_model.", stored(FLUX, kontext))
    result = server.run(opened(FLUX, file.name) | needed("model"))
    refused(result, "native", "does not open prefixed.safetensors", "Edit Image does", "Load Diffusion Model opens")


def test_gguf_is_for_the_pack_that_reads_it(
    server: Server, comfyui: Path, folder: Path, kontext: FluxTransformer2DModel
) -> None:
    if subprocess.run([find_python(comfyui), "-c", "import gguf"], capture_output=True, check=False).returncode:
        pytest.skip("ComfyUI's Python has no gguf, without which Load Edit Base Model opens no such file")
    file = write_gguf(folder / "native.gguf", stored(FLUX, kontext), gguf.GGMLQuantizationType.Q8_0)
    refused(server.run(opened(FLUX, file.name) | needed("model")), "native", "native.gguf", "ComfyUI-GGUF")


def test_a_lora_of_another_model_is_refused(server: Server, kontext: FluxTransformer2DModel) -> None:
    prompt = opened(FLUX, KONTEXT_FILE) | {"other": opened("tiny/qwen-image-edit")["model"]}
    file = foreign(server, "tiny/qwen-image-edit", "diffusion_model.")
    prompt["lora"] = node("OracleConverted", model=["other", 0], file=str(file))
    result = server.run(prompt | needed("model", lora=["lora", 0]))
    refused(result, "native", "lora: none of its", f"fits {FLUX}")
