"""Files that are not the model: each is refused, or doubted, in one message and from its header alone.

The files have the true names of other models' tensors, and small ones.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.cli.main import main
from trainer.errors import BadInput
from trainer.models.edit_model import open_model
from trainer.models.model_files import ModelFiles
from trainer.single_file.header import MAX_HEADER, WeightFile, open_weights

from ..part_files import Small, small_flux, small_qwen
from ..single_files import FLUX, QWEN, stored
from .conftest import Runs
from .processes import start_script

Write = Callable[[Path], object]


def named(*names: str, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.bfloat16) -> Write:
    """A safetensors file with tensors of these names."""
    tensors = {name: torch.zeros(8, 8, dtype=dtype) for name in names}
    return lambda path: save_file(tensors, path, metadata)


def flux_names(*more: str, block: str = "double_blocks.0.img_attn.qkv.weight") -> tuple[str, ...]:
    return ("img_in.weight", "txt_in.weight", block, "single_blocks.0.linear1.weight", *more)


def flux_with(**shapes: tuple[int, ...]) -> Write:
    """The beginning of a Flux transformer, its guidance embedding there, with other shapes."""
    tensors = {name: torch.zeros(8, 8) for name in flux_names("guidance_in.in_layer.weight")}
    tensors |= {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    return lambda path: save_file(tensors, path)


def quantized_as(format_name: str) -> Write:
    marker = torch.tensor(list(json.dumps({"format": format_name}).encode()), dtype=torch.uint8)
    block = "double_blocks.0.img_attn.qkv"
    tensors = {
        "img_in.weight": torch.zeros(8, 8),
        f"{block}.weight": torch.zeros(8, 4, dtype=torch.uint8),
        f"{block}.weight_scale": torch.zeros(8, dtype=torch.float8_e4m3fn),
        f"{block}.weight_scale_2": torch.tensor(1.0),
        f"{block}.comfy_quant": marker,
    }
    return lambda path: save_file(tensors, path)


def cut_short(path: Path) -> None:
    named(*flux_names())(path)
    path.write_bytes(path.read_bytes()[:-5])


UNET = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OTHERS: dict[str, tuple[str, Write]] = {
    "SD 1.5": (
        r"a checkpoint with a UNet of Stable Diffusion\b(?! XL)",
        named(
            f"model.diffusion_model.{UNET}",
            "first_stage_model.encoder.down.0.block.0.conv1.weight",
            "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        ),
    ),
    "SDXL": (
        "Stable Diffusion XL",
        named(
            f"model.diffusion_model.{UNET}",
            "model.diffusion_model.label_emb.0.0.weight",
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        ),
    ),
    "SD UNet": ("a UNet of Stable Diffusion", named("down_blocks.0.attentions.0.proj_in.weight", "conv_in.weight")),
    "SD 3.5": ("Stable Diffusion 3", named("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight")),
    "Flux schnell": ("schnell", named(*flux_names())),
    "Flux Fill": ("Fill", flux_with(img_in=(8, 384))),
    "Flux Canny": ("Canny or Depth", flux_with(img_in=(8, 128))),
    "FLUX.2": ("FLUX.2", named(*flux_names("double_stream_modulation_img.lin.weight"))),
    "Chroma": ("Chroma", named(*flux_names("distilled_guidance_layer.layers.0.in_layer.weight"))),
    "HunyuanVideo": ("HunyuanVideo", named(*flux_names("txt_in.individual_token_refiner.blocks.0.norm1.weight"))),
    "Flux of diffusers": (
        "diffusers' names",
        named("transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_q.weight"),
    ),
    "Wan": ("video model", named("blocks.0.cross_attn.k.weight", "blocks.0.self_attn.k.weight", "head.head.weight")),
    "Edit-2511": (
        "2511|made for|Qwen-Image transformer",
        named("transformer_blocks.0.img_mod.1.weight", "__index_timestep_zero__"),
    ),
    "LoRA of diffusers": ("a LoRA", named("transformer.transformer_blocks.0.attn.to_q.lora_A.weight")),
    "LoRA of kohya": ("a LoRA", named("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight")),
    "LoRA of ComfyUI": ("a LoRA", named("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight")),
    "LoRA of peft": ("a LoRA", named("base_model.model.transformer_blocks.0.img_mod.1.lora_A.weight")),
    "LoKr": ("a LoRA or another adapter", named("lycoris_double_blocks_0_img_attn_qkv.lokr_w1")),
    "ControlNet": ("a ControlNet", named("controlnet_blocks.0.weight", *flux_names())),
    "VAE": ("it is a VAE", named("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")),
    "VAE of Qwen": ("VAE of Qwen", named("encoder.downsamples.0.residual.2.weight", "conv1.weight")),
    "T5": ("a T5 text encoder", named("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight")),
    "CLIP": (
        "a CLIP text encoder",
        named(
            "text_model.encoder.layers.0.self_attn.q_proj.weight",
            "text_model.embeddings.token_embedding.weight",
        ),
    ),
    "Qwen2.5-VL": (
        "Qwen's text encoder",
        named("model.layers.0.self_attn.q_proj.bias", "visual.blocks.0.attn.qkv.weight"),
    ),
    "nvfp4": ("nvfp4", quantized_as("nvfp4")),
    "mxfp8": ("mxfp8", quantized_as("mxfp8")),
    "SVDQuant": (
        "SVDQuant",
        named(
            "transformer_blocks.0.qkv_proj.qweight",
            "transformer_blocks.0.qkv_proj.wscales",
            "transformer_blocks.0.qkv_proj.lora_down",
        ),
    ),
    "bitsandbytes": (
        "bitsandbytes",
        named(*flux_names("double_blocks.0.img_mlp.0.weight.quant_state.bitsandbytes__nf4")),
    ),
    "cut short": ("is cut short", cut_short),
    "pickle": ("pickle", lambda path: torch.save({"img_in.weight": torch.zeros(2)}, path)),
    "raw pickle": ("pickle", lambda path: path.write_bytes(pickle.dumps({"state_dict": {}}))),
    "HTML": ("HTML", lambda path: path.write_text("\n<!DOCTYPE html><html><title>401 Unauthorized</title></html>")),
    "JSON": ("JSON text", lambda path: path.write_text('{"metadata": {}, "weight_map": {}}')),
    "LFS pointer": ("Git LFS pointer", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
    "empty": ("is empty", lambda path: path.touch()),
    "folder": ("is a folder", lambda path: path.mkdir()),
    "missing": ("does not exist", lambda path: None),
    "noise": ("no safetensors header", lambda path: path.write_bytes(bytes(range(255, 55, -1)))),
}


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only markers of quantization may be read before a file is found good."""
    real = WeightFile.opened

    def opened(file: WeightFile) -> object:
        assert any(name.endswith(".comfy_quant") for name in file.tensors), f"{file.path} is being read"
        return real(file)

    monkeypatch.setattr(WeightFile, "opened", opened)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def qwen_files(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_qwen(tmp_path_factory.mktemp("qwen"))


def refusal(base_model: str, path: Path) -> str:
    with pytest.raises(BadInput) as error:
        open_model(base_model, files=ModelFiles(transformer=path))
    message = str(error.value)
    assert str(path) in message and message.isprintable(), message
    return message


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_transformer_of_kontext_is_refused_by_what_it_is(what: str, tmp_path: Path):
    words, write = OTHERS[what]
    path = tmp_path / "kontext.safetensors"
    write(path)
    assert re.search(words, refusal(FLUX, path)), refusal(FLUX, path)


@pytest.mark.parametrize("what", [name for name in OTHERS if "Flux" not in name])
def test_what_is_no_transformer_of_qwen_is_refused_by_what_it_is(what: str, tmp_path: Path):
    words, write = OTHERS[what]
    path = tmp_path / "qwen_image_edit.safetensors"
    write(path)
    assert re.search(words, refusal(QWEN, path)), refusal(QWEN, path)


@pytest.mark.slow
def test_each_familys_transformer_is_refused_for_the_other(flux: Small, qwen_files: Small):
    assert "a Flux transformer" in refusal(QWEN, flux.files.transformer)
    assert "a Qwen-Image transformer" in refusal(FLUX, qwen_files.files.transformer)


def test_edit_2511_is_told_by_its_mark(qwen_files: Small, tmp_path: Path):
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel.from_pretrained(qwen_files.folder, subfolder="transformer")
    tensors = stored(QWEN, transformer) | {"__index_timestep_zero__": torch.zeros(1)}
    save_file(tensors, tmp_path / "qwen_image_edit.safetensors")
    assert "Edit-2511" in refusal(QWEN, tmp_path / "qwen_image_edit.safetensors")


@pytest.mark.parametrize(
    ("base_model", "name", "warning"),
    [
        (FLUX, "flux1-dev.safetensors", '"kontext" is not in its name'),
        (FLUX, "flux1-krea-dev.safetensors", 'contains "krea"'),
        (FLUX, "flux1-dev-kontext_fp8_scaled.safetensors", None),
        (QWEN, "qwen_image_fp8_e4m3fn.safetensors", '"edit" is not in its name'),
        (QWEN, "qwen_image_edit_2509_fp8_e4m3fn.safetensors", 'contains "2509"'),
        (QWEN, "qwen_image_edit_bf16.safetensors", None),
    ],
)
def test_a_sibling_with_the_same_tensors_is_doubted(
    flux: Small, qwen_files: Small, tmp_path: Path, base_model: str, name: str, warning: str | None
):
    path = tmp_path / name
    path.write_bytes((flux if base_model == FLUX else qwen_files).files.transformer.read_bytes())
    doubts = open_model(base_model, files=ModelFiles(transformer=path)).warnings()
    assert len(doubts) == (warning is not None)
    assert all(warning in said and name in said for said in doubts)


def test_what_a_file_says_of_itself_counts_too(flux: Small, tmp_path: Path):
    from safetensors.torch import load_file

    save_file(load_file(flux.files.transformer), tmp_path / "mine.safetensors", {"modelspec.title": "FLUX.1 Kontext"})
    assert not open_model(FLUX, files=ModelFiles(transformer=tmp_path / "mine.safetensors")).warnings()


def test_wans_vae_in_the_place_of_qwens_is_doubted(qwen_files: Small, tmp_path: Path):
    path = tmp_path / "wan_2.1_vae.safetensors"
    path.write_bytes(qwen_files.files.vae.read_bytes())
    (warning,) = open_model(QWEN, files=ModelFiles(vae=path)).warnings()
    assert path.name in warning


# hostile headers


def header(entries: object, data: int = 8) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(first: object = 0, last: object = 8, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


HOSTILE: dict[str, bytes] = {
    "a header longer than the file": struct.pack("<Q", 2**20) + b'{"a":',
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b'{"a": 1}',
    "a header of as many bytes as can be": b"\xff" * 8 + b'{"a": 1}',
    "no object": header([1, 2]),
    "not JSON": header(b'{"a": '),
    "nested 10,000 deep": header(b'{"a":' * 10_000),
    "not UTF-8": header(b'{"\xff": 1}'),
    "another encoding": header(json.dumps({"a": entry()}).encode("utf-16")),
    "an entry that is a number": header({"a": 1}),
    "negative offsets": header({"a": entry(-8, 0)}),
    "offsets the wrong way round": header({"a": entry(8, 0)}),
    "overlapping tensors": header({"a": entry(), "b": entry(4, 12)}, 12),
    "a gap": header({"a": entry(), "b": entry(16, 24)}, 24),
    "bytes left over": header({"a": entry()}, 12),
    "a shape of more bytes": header({"a": entry(shape=[2**40, 2**40])}),
    "a shape of fewer bytes": header({"a": entry(shape=[1])}),
    "a negative shape": header({"a": entry(shape=[-1, -2])}),
    "a shape of fractions": header({"a": entry(shape=[2.0])}),
    "a shape of truths": header({"a": entry(0, 4, shape=[True])}, 4),
    "a shape that is text": header({"a": entry(shape="2")}),
    "offsets that are text": header({"a": entry("0", "8")}),
    "a number of 5,000 digits": header(
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'
    ),
    "no dtype": header({"a": entry(dtype=None)}),
    "a dtype that is a list": header({"a": entry(dtype=["F32"])}),
    "metadata that is a list": header({"__metadata__": [1], "a": entry()}),
    "metadata that is no text": header({"__metadata__": {"a": {"b": 1}}, "a": entry()}),
    "control characters": header({"a\x1b[2J\nerror: all is well": entry()}),
    "a name of a megabyte": header({"a" * 2**20: entry()}),
    "an unknown dtype": header({"img_in.weight": entry(dtype="F3")}),
    "a tensor without numbers": header({"img_in.weight": entry(0, 0, shape=[0, 2**50])}, 0),
    "no tensors": header({}, 0),
    "quantization that is no JSON": header({"__metadata__": {"_quantization_metadata": "{"}, "img_in.weight": entry()}),
    "quantization that is a list": header({"__metadata__": {"_quantization_metadata": "[]"}, "img_in.weight": entry()}),
    "a rotation that is text": header(
        {
            "__metadata__": {
                "_quantization_metadata": json.dumps(
                    {"layers": {"a": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": "x"}}}
                )
            },
            "a.weight": entry(shape=[8], dtype="I8"),
        }
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_one_refusal(what: str, tmp_path: Path):
    path = tmp_path / "kontext.safetensors"
    path.write_bytes(HOSTILE[what])
    assert len(refusal(FLUX, path)) < 600


@pytest.mark.slow
def test_a_header_of_a_million_entries_costs_little(tmp_path: Path):
    one = b'"%07d":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}'
    path = tmp_path / "kontext.safetensors"
    for count in (10**6, 3 * 10**5):
        path.write_bytes(header(b"{" + b",".join(one % (n, n, n + 1) for n in range(count)) + b"}", count))
        program = (
            "import sys, resource; from pathlib import Path; from trainer.single_file.header import open_weights\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: open_weights(Path(sys.argv[1]), 'transformer')\n"
            "except ValueError as error: print(error)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        message, kibibytes = done.stdout.strip().splitlines()
        assert "than any model's" in message or "more than 100,000 tensors" in message
        assert int(kibibytes) * 1024 < 3 * MAX_HEADER


def hostile_gguf(path: Path, what: str) -> None:
    """A file with one tensor of 8 x 8 float32."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    uint8, string, array = 0, 8, 9
    fields = {
        "three million bytes": [text(b"tags") + struct.pack("<IIQ", array, uint8, 3_000_000) + bytes(3_000_000)],
        "many fields": [text(b"a%d" % n) + struct.pack("<IB", uint8, 1) for n in range(200_000)],
        "long texts": [text(b"tags") + struct.pack("<IIQ", array, string, 4) + text(b"x" * 9_000_000) * 4],
    }[what]
    tensor = text(b"img_in.weight") + struct.pack("<IQQIQ", 2, 8, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields) + tensor
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(256))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("three million bytes", ""),
        ("many fields", "more than 100,000 fields"),
        ("long texts", "its header is longer than any model's"),
    ],
)
def test_a_gguf_header_takes_no_time(what: str, says: str, tmp_path: Path):
    """gguf itself makes several arrays for each element: 40 seconds for the first."""
    path = tmp_path / "f.gguf"
    hostile_gguf(path, what)
    began = time.monotonic()
    if says:
        with pytest.raises(BadInput, match=says):
            open_weights(path, "transformer")
    else:
        assert open_weights(path, "transformer").tensors["img_in.weight"].shape == (8, 8)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("size", [5, 23, 24, 40, 100, 200])
def test_a_gguf_that_is_cut_off(size: int, tmp_path: Path):
    path = tmp_path / "f.gguf"
    hostile_gguf(path, "three million bytes")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadInput, match="is damaged or cut short"):
        open_weights(path, "transformer")


def test_a_header_of_any_length_is_no_pickle(tmp_path: Path):
    """The first byte is the low one of the header's length, and may be that of a pickle, a space or a bracket."""
    path = tmp_path / "f.safetensors"
    for length in (0x80, 0x3C, 0x120, 0x80 + 0x2000, 0x0A80):
        text = json.dumps({"a": entry()}).encode()
        path.write_bytes(header(text + b" " * (length - len(text))))
        assert open_weights(path, "transformer").tensors["a"].shape == (2,)


# from the command line


@pytest.fixture
def train(runs: Runs, tmp_path: Path) -> Callable[..., int]:
    runs.write(2)
    columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}

    def run(base_model: str, *options: object) -> int:
        request = {"resource": str(runs.parquet), "base_model": base_model, "script_type": "image_editing"}
        (tmp_path / "request.json").write_text(json.dumps(request | {"training_params": columns | {"steps": 1}}))
        return main(["train", str(tmp_path / "request.json"), "--out", str(tmp_path / "run"), *map(str, options)])

    return run


@pytest.mark.parametrize("what", OTHERS)
def test_training_on_a_wrong_file_is_refused(
    what: str, train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words, write = OTHERS[what]
    path = tmp_path / "kontext.safetensors"
    write(path)
    assert train(FLUX, "--transformer", path) == 2
    said = capsys.readouterr()
    assert re.search(words, said.err) and "Traceback" not in said.out + said.err
    assert said.err.count("error:") == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_itself_ends_with_2(flux: Small, runs: Runs, tmp_path: Path):
    """In a process of its own, and every fault in one message."""
    runs.write(2)
    columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
    request = {"resource": str(runs.parquet), "base_model": FLUX, "script_type": "image_editing"}
    (tmp_path / "request.json").write_text(json.dumps(request | {"training_params": columns}))
    OTHERS["SDXL"][1](tmp_path / "sdxl.safetensors")
    command = ["train", tmp_path / "request.json", "--out", tmp_path / "run"]
    command += ["--transformer", tmp_path / "sdxl.safetensors", "--vae", flux.files.text_encoder]
    code, stdout, stderr = start_script("trainer", *command).wait()
    assert code == 2 and "Traceback" not in stdout + stderr
    assert "Stable Diffusion XL" in stderr and "it is a CLIP text encoder" in stderr
