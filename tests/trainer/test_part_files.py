"""Text encoders and VAEs from single files: the same weights as in a folder encode to the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5EncoderModel, T5TokenizerFast

from trainer.cli.main import main
from trainer.errors import BadInput
from trainer.models.edit_model import EditModel, open_model
from trainer.models.flux2_single_file import TOKENIZERS as KLEIN_TOKENIZERS
from trainer.models.flux_single_file import TOKENIZERS as FLUX_TOKENIZERS
from trainer.models.model_files import ModelFiles
from trainer.models.qwen_single_file import TOKENIZERS as QWEN_TOKENIZERS
from trainer.quantization.linear import QuantizedLinear, dequantize_layers
from trainer.single_file.tokenizer import load_tokenizers

from ..part_files import Small, ldm_names, small_flux, small_klein, small_qwen
from ..single_files import FLUX, KLEIN, QWEN, Tensors
from .conftest import Runs

pytestmark = pytest.mark.slow

CPU, F32 = "cpu", torch.float32
CAPTION = "turn the circle red, please"
ROOT = Path(__file__).parents[2]
COMFYUI = os.environ.get("COMFYUI_PATH")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def qwen_files(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def klein_files(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(params=["flux", "qwen_files", "klein_files"])
def small(request: pytest.FixtureRequest) -> Small:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def nothing_found_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No ComfyUI and no cache of this machine's, and no network."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def encoded(model: EditModel, dtype: torch.dtype = F32) -> dict[str, torch.Tensor]:
    """A caption with a control image."""
    control = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    return dict(model.load_text_encoder(CPU, dtype).encode(CAPTION, [control]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_is_encoded_as_from_a_folder_with_the_same_weights(small: Small, dtype: torch.dtype):
    files = open_model(small.base_model, files=replace(small.files, transformer=None, vae=None))
    expected = encoded(open_model(small.base_model, small.folder), dtype)
    found = encoded(files, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and tensor.dtype == dtype, name


def test_every_tensor_of_an_encoder_is_real_and_the_folders(small: Small):
    ours = open_model(small.base_model, files=small.files).load_text_encoder(CPU, F32).module
    theirs = open_model(small.base_model, small.folder).load_text_encoder(CPU, F32).module
    expected = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    found = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert not any(tensor.is_meta for tensor in found.values())
    assert expected.keys() - found.keys() <= {"0.lm_head.weight", "1.lm_head.weight"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_images_are_encoded_and_decoded_as_from_a_folder(small: Small):
    folder = open_model(small.base_model, small.folder).load_codec(CPU, F32)
    file = open_model(small.base_model, files=replace(small.files, text_encoder=None, text_encoder_2=None))
    codec = file.load_codec(CPU, F32)
    assert type(codec) is type(folder)
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(4)) * 2 - 1
    latents = folder.encode(pixels)
    assert torch.equal(codec.encode(pixels), latents)
    assert torch.equal(codec.decode(latents), folder.decode(latents))


def test_a_vae_is_read_with_any_prefix_and_with_diffusers_names(small: Small, tmp_path: Path):
    kind = {FLUX: AutoencoderKL, QWEN: AutoencoderKLQwenImage, KLEIN: AutoencoderKLFlux2}[small.base_model]
    own = kind.from_pretrained(small.folder, subfolder="vae").state_dict()
    native = load_file(small.files.vae)
    writings = {"first_stage_model": native, "vae": native, "diffusers": own}
    for name, tensors in writings.items():
        prefix = "" if name == "diffusers" else f"{name}."
        path = tmp_path / f"{name}.safetensors"
        save_file({prefix + key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        codec = open_model(small.base_model, files=ModelFiles(vae=path)).load_codec(CPU, F32)
        assert all(torch.equal(tensor, own[key]) for key, tensor in codec.module.state_dict().items())


def scaled(tensors: Tensors, marking: str) -> Tensors:
    """The Linears' weights in fp8 with a scale, the rest in bf16."""
    result: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if marking == "scale_weight" else {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        linear = leaf == "weight" and tensor.dim() == 2 and "embed" not in name and "shared" not in name
        if not linear or "relative_attention_bias" in name:
            result[name] = tensor.to(torch.bfloat16)
            continue
        scale = tensor.abs().amax() / 448
        result[name] = (tensor / scale).to(torch.float8_e4m3fn)
        result[f"{module}.{marking}"] = scale
        if marking == "weight_scale":
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            result[f"{module}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    return result


@pytest.mark.parametrize("marking", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_fp8_encoders_keep_their_codes_and_encode_as_dequantized(
    small: Small, tmp_path: Path, marking: str, dtype: torch.dtype
):
    name = "text_encoder_2" if small.base_model == FLUX else "text_encoder"
    path = tmp_path / "fp8_scaled.safetensors"
    save_file(scaled(load_file(getattr(small.files, name)), marking), path)
    model = open_model(small.base_model, files=replace(small.files, **{name: path}))
    control = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    encoder = model.load_text_encoder(CPU, dtype)
    assert any(isinstance(layer, QuantizedLinear) for layer in encoder.module.modules())
    kept = encoder.encode(CAPTION, [control])["prompt_embeds"]
    dequantize_layers(encoder.module, dtype)
    assert torch.equal(kept, encoder.encode(CAPTION, [control])["prompt_embeds"])
    full_tensor = encoded(open_model(small.base_model, small.folder), dtype)["prompt_embeds"]
    again = dict(
        model.load_text_encoder(CPU, dtype).encode(
            CAPTION, [torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))]
        )
    )
    error = torch.linalg.vector_norm(again["prompt_embeds"].float() - full_tensor.float()) / torch.linalg.vector_norm(
        full_tensor.float()
    )
    assert error < 0.2, f"{error}: codes read as if they had no scale are off by far more"


def test_plain_fp8_t5_has_fp8_norms_and_words(flux: Small, tmp_path: Path):
    path = tmp_path / "t5xxl_fp8_e4m3fn.safetensors"
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(flux.files.text_encoder_2).items()}
    save_file(tensors, path)
    encoder = open_model(FLUX, files=replace(flux.files, text_encoder_2=path)).load_text_encoder(CPU, F32)
    t5 = encoder.pipeline.text_encoder_2
    assert torch.equal(t5.shared.weight, tensors["shared.weight"].float())
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    norm = "encoder.final_layer_norm.weight"
    assert torch.equal(t5.get_parameter(norm), tensors[norm].float())


@pytest.mark.parametrize("dropped", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5s_words_under_either_name(flux: Small, tmp_path: Path, dropped: str):
    tensors = load_file(flux.files.text_encoder_2)
    words = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
    tensors |= {"shared.weight": words.clone(), "encoder.embed_tokens.weight": words.clone()}
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, tmp_path / "t5.safetensors")
    files = replace(flux.files, text_encoder_2=tmp_path / "t5.safetensors")
    assert torch.equal(
        encoded(open_model(FLUX, files=files))["prompt_embeds"], encoded(open_model(FLUX, flux.folder))["prompt_embeds"]
    )


def test_qwens_head_is_not_needed(qwen_files: Small, tmp_path: Path):
    tensors = load_file(qwen_files.files.text_encoder)
    assert tensors.pop("lm_head.weight") is not None
    save_file(tensors, tmp_path / "qwen.safetensors")
    files = replace(qwen_files.files, text_encoder=tmp_path / "qwen.safetensors")
    found = encoded(open_model(QWEN, files=files))["prompt_embeds"]
    assert torch.equal(found, encoded(open_model(QWEN, qwen_files.folder))["prompt_embeds"])


def test_a_checkpoint_with_everything_in_it_is_every_part(flux: Small, tmp_path: Path):
    prefixes = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    tensors = {
        prefix + name: tensor
        for part, prefix in prefixes.items()
        for name, tensor in load_file(getattr(flux.files, part)).items()
    }
    path = tmp_path / "flux1-kontext-all.safetensors"
    save_file(tensors, path)
    model = open_model(FLUX, files=ModelFiles(**dict.fromkeys(prefixes, path), tokenizers=flux.files.tokenizers))
    assert torch.equal(encoded(model)["prompt_embeds"], encoded(open_model(FLUX, flux.folder))["prompt_embeds"])
    assert model.load_codec(CPU, F32).module.config.block_out_channels == [32, 64, 64, 64]
    assert model.load_transformer(CPU, F32).config.num_layers == 1


# which part comes from where


def test_the_two_text_encoders_may_be_given_either_way_round(flux: Small):
    swapped = replace(flux.files, text_encoder=flux.files.text_encoder_2, text_encoder_2=flux.files.text_encoder)
    assert open_model(FLUX, files=swapped).files == flux.files
    only = ModelFiles(text_encoder=flux.files.text_encoder_2)
    assert open_model(FLUX, flux.folder, files=only).files.text_encoder_2 == flux.files.text_encoder_2


def test_what_is_no_file_comes_from_the_folder(flux: Small, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(flux.folder, folder, ignore=shutil.ignore_patterns("text_encoder_2", "vae", "transformer"))
    files = replace(flux.files, text_encoder=None, tokenizers=None)
    model = open_model(FLUX, folder, files=files)
    expected = encoded(open_model(FLUX, flux.folder))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoded(model).items())
    assert model.load_text_encoder(CPU, F32).fingerprint == model.fingerprint("text")


def test_fingerprints_follow_the_content_of_every_file(flux: Small, tmp_path: Path):
    before = open_model(FLUX, files=flux.files)
    for part, name in (("text", "text_encoder"), ("text", "text_encoder_2"), ("vae", "vae")):
        path = tmp_path / "changed.safetensors"
        tensors = load_file(getattr(flux.files, name))
        last = next(reversed(tensors))
        tensors[last] = tensors[last] + 1
        save_file(tensors, path)
        after = open_model(FLUX, files=replace(flux.files, **{name: path}))
        assert after.fingerprint(part) != before.fingerprint(part)
        copy = shutil.copy(getattr(flux.files, name), tmp_path / "copy.safetensors")
        same = open_model(FLUX, files=replace(flux.files, **{name: Path(copy)}))
        assert same.fingerprint(part) == before.fingerprint(part)


# tokenizers


def test_tokenizers_are_found_in_each_place(flux: Small, monkeypatch: pytest.MonkeyPatch):
    expected = encoded(open_model(FLUX, flux.folder))["prompt_embeds"]
    nowhere = replace(flux.files, tokenizers=None)
    assert torch.equal(encoded(open_model(FLUX, flux.folder, files=nowhere))["prompt_embeds"], expected)
    monkeypatch.setenv("COMFYUI_PATH", str(flux.files.tokenizers))
    assert torch.equal(encoded(open_model(FLUX, files=nowhere))["prompt_embeds"], expected)


def test_missing_tokenizers_name_both_remedies(small: Small, tmp_path: Path):
    for place in (None, tmp_path):
        with pytest.raises(BadInput) as refusal:
            open_model(small.base_model, files=replace(small.files, tokenizers=place))
        for remedy in ("--comfyui", "COMFYUI_PATH", f"hf download {small.base_model} --include"):
            assert remedy in str(refusal.value)
    with pytest.raises(BadInput, match="does not exist"):
        open_model(small.base_model, files=replace(small.files, tokenizers=tmp_path / "none"))


def test_a_tokenizer_of_another_model_is_refused(flux: Small, tmp_path: Path):
    tensors = load_file(flux.files.text_encoder)
    words = "text_model.embeddings.token_embedding.weight"
    tensors[words] = tensors[words][:500].clone()
    save_file(tensors, tmp_path / "clip.safetensors")
    model = open_model(FLUX, files=replace(flux.files, text_encoder=tmp_path / "clip.safetensors"))
    with pytest.raises(BadInput, match="vocabulary of 500 tokens"):
        model.load_text_encoder(CPU, F32)


@pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH is not set")
def test_tokenizers_of_a_real_comfyui():
    tokenizers = FLUX_TOKENIZERS | {"qwen": QWEN_TOKENIZERS["tokenizer"], "klein": KLEIN_TOKENIZERS["tokenizer"]}
    loaded = load_tokenizers(tokenizers, {name: Path(COMFYUI) / entry.comfyui for name, entry in tokenizers.items()})
    kinds = [CLIPTokenizer, T5TokenizerFast, Qwen2Tokenizer, Qwen2Tokenizer]
    assert [type(tokenizer) for tokenizer in loaded.values()] == kinds
    clip, t5, qwen, klein = loaded.values()
    assert clip("a red fox", padding="max_length")["input_ids"] == [49406, 320, 736, 3240, *[49407] * 73]
    assert t5("a red fox")["input_ids"] == [3, 9, 1131, 3, 20400, 1]
    assert qwen("<|im_start|>user<|image_pad|>")["input_ids"] == [151644, 872, 151655]
    text = klein.apply_chat_template([{"role": "user", "content": "a red fox"}], tokenize=False)
    answer = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert klein(text)["input_ids"] == [151644, 872, 198, 64, 2518, 38835, *answer]


# refusals


def test_every_fault_is_named_at_once(flux: Small, qwen_files: Small, tmp_path: Path):
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    files = ModelFiles(
        transformer=qwen_files.files.transformer,
        vae=empty,
        text_encoder=qwen_files.files.text_encoder,
        text_encoder_2=qwen_files.files.vae,
    )
    with pytest.raises(BadInput) as refusal:
        open_model(FLUX, files=files)
    for words in ("Qwen-Image transformer", "is empty", "Qwen's text encoder", "Wan's kind"):
        assert words in str(refusal.value)


def test_combinations_that_make_no_sense_are_refused(flux: Small, qwen_files: Small, tmp_path: Path):
    second = replace(qwen_files.files, text_encoder_2=flux.files.text_encoder_2)
    with pytest.raises(BadInput, match="one text encoder"):
        open_model(QWEN, files=second)
    with pytest.raises(BadInput, match="complete in itself"):
        open_model("tiny/flux-kontext", files=ModelFiles(vae=flux.files.vae))
    twice = replace(flux.files, text_encoder=flux.files.text_encoder_2)
    with pytest.raises(BadInput, match=r"not a CLIP-L text encoder: it is a T5"):
        open_model(FLUX, files=twice)
    t5 = T5EncoderModel.from_pretrained(flux.folder, subfolder="text_encoder_2")
    wide = {name: tensor for name, tensor in t5.state_dict().items() if "layer_norm" not in name}
    save_file({name: tensor.clone() for name, tensor in wide.items()}, tmp_path / "t5.safetensors")
    with pytest.raises(BadInput, match=r"layer_norm.weight is missing"):
        open_model(FLUX, files=replace(flux.files, text_encoder_2=tmp_path / "t5.safetensors"))


def test_an_encoder_that_the_transformer_cannot_use_is_refused(flux: Small, tmp_path: Path):
    tensors = {name: tensor.clone() for name, tensor in load_file(flux.files.transformer).items()}
    tensors["vector_in.in_layer.weight"] = tensors["vector_in.in_layer.weight"][:, :32].clone()
    save_file(tensors, tmp_path / "kontext.safetensors")
    with pytest.raises(BadInput, match=r"output has 64 channels, but .* expects 32"):
        open_model(FLUX, files=replace(flux.files, transformer=tmp_path / "kontext.safetensors"))


def test_another_vae_is_refused(flux: Small, tmp_path: Path):
    small = AutoencoderKL(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    save_file({k: t.contiguous() for k, t in ldm_names(small.state_dict()).items()}, tmp_path / "sd.safetensors")
    with pytest.raises(BadInput, match="not a whole VAE of Flux"):
        open_model(FLUX, files=ModelFiles(vae=tmp_path / "sd.safetensors"))


# from the command line


def test_training_from_files_alone(
    small: Small,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is asked of the network")

    runs.write(2)
    files = replace(small.files, transformer=tmp_path / "unnamed.safetensors")
    shutil.copy(small.files.transformer, files.transformer)
    columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
    params = columns | {"steps": 1, "lora_rank": 2, "samples": [], "sample_width": 64, "sample_height": 64}
    request = {"resource": str(runs.parquet), "base_model": small.base_model, "script_type": "image_editing"}
    (tmp_path / "request.json").write_text(json.dumps(request | {"training_params": params}))
    options = [
        text
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
        if (path := getattr(files, name))
        for text in (f"--{name.replace('_', '-')}", str(path))
    ]
    options += ["--comfyui", str(files.tokenizers), "--resolution", "64", "--control-resolution", "target"]
    command = ["train", str(tmp_path / "request.json"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert main([*command, *options, "--sample-steps", "1"]) == 0
    assert list((tmp_path / "run").glob("*.safetensors"))
    said = capsys.readouterr().out
    assert said.count("unnamed.safetensors may not be") == 1
    assert f"--vae {files.vae}" in said, "the command that uses the LoRA names the files"
