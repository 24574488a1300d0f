"""The embedded models: their data, their parts, and that each is a whole pipeline in diffusers' layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2KleinPipeline,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as qwen_module
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus_module
from safetensors.torch import load_file
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

from trainer.errors import BadInput
from trainer.families.records import EMBEDDED
from trainer.families.registry import find_variant
from trainer.models.edit_model import open_model
from trainer.models.qwen_processor import load_processor
from trainer.tiny.parts import FAMILIES, flux2_transformer, flux_transformer, qwen_transformer, write_parts_beside
from trainer.tiny.shapes import (
    BASE_EDITS,
    SIZE,
    TAUGHT_EDITS,
    TAUGHT_TWO_PICTURE_EDITS,
    TWO_PICTURE_EDITS,
    make_pair,
    make_pairs,
    png_bytes,
    write_parquet,
)
from trainer.tiny.vae import (
    encode,
    flux2_vae,
    flux_vae,
    qwen_vae,
    reconstruction_psnr,
    single_frames,
    to_pixels,
    train_vae,
)

PLUS = EMBEDDED / "qwen-image-edit-plus"
CAPTIONS = [
    "",
    "make it red",
    "Make it red",
    "make it red ",
    "make it blue",
    "turn it into a star",
    "invert the colors",
    "größer",
    "größe",
    "сделай красным",
    "把它变成红色",
    "把它变成蓝色",
    "🦊",
    "🐻",
    "xylophone, 3.5%",
]
TOKENIZERS = {
    ("flux-kontext", "tokenizer"): CLIPTokenizer,
    ("flux-kontext", "tokenizer_2"): T5TokenizerFast,
    ("qwen-image-edit", "tokenizer"): Qwen2Tokenizer,
    ("flux2-klein", "tokenizer"): Qwen2Tokenizer,
}


BASE, TAUGHT = BASE_EDITS + TWO_PICTURE_EDITS, TAUGHT_EDITS + TAUGHT_TWO_PICTURE_EDITS
COMPLETE = [family for family in FAMILIES if not find_variant(f"tiny/{family}").shared_folder]
"""Families whose folders have all parts."""


@pytest.mark.parametrize("edit", BASE + TAUGHT)
def test_pairs_are_deterministic_and_distinct(edit: str) -> None:
    pairs = [make_pair(edit, 5, index) for index in range(20)]
    again = make_pair(edit, 5, 3)
    assert again.caption == pairs[3].caption
    assert again.control.tobytes() == pairs[3].control.tobytes()
    assert again.target.tobytes() == pairs[3].target.tobytes()
    assert len({pair.control.tobytes() for pair in pairs}) == 20
    assert make_pair(edit, 6, 3).control.tobytes() != again.control.tobytes()
    assert {image.size for pair in pairs for image in (*pair.controls, pair.target)} == {(SIZE, SIZE)}
    assert {len(pair.controls) for pair in pairs} == {2 if edit in TWO_PICTURE_EDITS + TAUGHT_TWO_PICTURE_EDITS else 1}
    assert sum(pair.control.tobytes() != pair.target.tobytes() for pair in pairs) == 20


def test_taught_edits_are_no_base_edits() -> None:
    base, taught = ({pair.caption for pair in make_pairs(edits, 1, 50 * len(edits))} for edits in (BASE, TAUGHT))
    assert not base & taught
    assert len(taught) == len(TAUGHT)


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", ["recolor", "frame"], seed=1, count=6, start=2)
    rows = pq.read_table(path).to_pylist()
    assert [row["caption"] for row in rows] == [p.caption for p in make_pairs(["recolor", "frame"], 1, 6, start=2)]
    assert rows[0]["control"]["bytes"].startswith(b"\x89PNG")
    assert rows[0]["control"]["path"] is None
    assert "control_2" not in rows[0]


def test_a_parquet_of_two_pictures_has_a_column_for_each(tmp_path: Path) -> None:
    rows = pq.read_table(write_parquet(tmp_path / "pairs.parquet", ["recolor", "join"], 1, 2)).to_pylist()
    pair = make_pair("join", 1, 1)
    assert rows[0]["control_2"] is None
    assert [rows[1][name]["bytes"] for name in ("control", "control_2")] == [png_bytes(own) for own in pair.controls]


@pytest.mark.parametrize(("place", "kind"), TOKENIZERS.items())
def test_common_words_are_one_token_and_nothing_is_lost(place: tuple[str, str], kind: type) -> None:
    family, name = place
    tokenizer = kind.from_pretrained(EMBEDDED / family / name, local_files_only=True)
    plain = len(tokenizer("").input_ids)
    assert len(tokenizer("make it red").input_ids) == plain + 3
    assert len(tokenizer("turn it into a circle").input_ids) == plain + 5
    for caption in ("größer", "xylophone, 3.5%", "сделай красным"):
        ids = tokenizer(caption).input_ids
        assert name == "tokenizer" or tokenizer.unk_token_id not in ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == caption.replace(" ", "")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_told_apart(family: str) -> None:
    encoder = open_model(f"tiny/{family}").load_text_encoder("cpu", torch.float32)
    control = torch.full((1, 3, SIZE, SIZE), 0.5)
    seen: list[torch.Tensor] = []
    for caption in CAPTIONS:
        text = encoder.encode(caption, [control])
        code = torch.cat([torch.nn.functional.pad(t.flatten(), (0, 8192))[:8192] for t in text.values()])
        # Capitals and spaces at the end are nothing to CLIP and T5.
        same = [caption == "make it red ", caption == "Make it red"][: 2 if family == "flux-kontext" else 0]
        if not any(same):
            assert all((code - other).norm() > 1 for other in seen), caption
        seen.append(code)


def test_qwen_template_is_as_long_as_the_real_one() -> None:
    folder = EMBEDDED / "qwen-image-edit"
    pipeline = QwenImageEditPipeline.from_pretrained(
        folder, transformer=None, vae=None, processor=load_processor(folder), local_files_only=True
    )
    prefix = pipeline.prompt_template_encode.split("<|vision_start|>")[0]
    assert len(pipeline.tokenizer(prefix).input_ids) == pipeline.prompt_template_encode_start_idx == 64


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPLETE)
def test_vae_carries_pictures_of_every_edit(family: str) -> None:
    codec = open_model(f"tiny/{family}").load_codec("cpu", torch.float32)
    kinds = BASE_EDITS + TAUGHT_EDITS
    pairs = make_pairs(kinds, 777, 4 * len(kinds))
    pixels = to_pixels(image for pair in pairs for image in (pair.control, pair.target))
    assert reconstruction_psnr(codec.module, pixels) >= 33


@pytest.mark.parametrize("family", COMPLETE)
def test_latents_are_about_standard_normal(family: str) -> None:
    model = open_model(f"tiny/{family}")
    codec = model.load_codec("cpu", torch.float32)
    pixels = to_pixels(pair.target for pair in make_pairs(BASE_EDITS, 778, 32)).float() / 255
    latents = model.family.encode(codec, pixels)
    assert abs(latents.mean().item()) < 0.3
    assert 0.7 < latents.std().item() < 1.3


def test_klein_s_vae_gives_the_images_of_kontext_s() -> None:
    pixels = to_pixels(pair.target for pair in make_pairs(BASE_EDITS, 778, 4))
    kontext = AutoencoderKL.from_pretrained(EMBEDDED / "flux-kontext", subfolder="vae", local_files_only=True)
    klein = AutoencoderKLFlux2.from_pretrained(EMBEDDED / "flux2-klein", subfolder="vae", local_files_only=True)
    latents = encode(klein.float(), pixels)
    torch.testing.assert_close(latents, encode(kontext.float(), pixels), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        images = klein.decode(latents).sample, kontext.decode(latents).sample
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def test_single_frames_are_encoded_alike() -> None:
    codec = open_model("tiny/qwen-image-edit").load_codec("cpu", torch.float32)
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with single_frames():
        fast = codec.encode(pixels)
    torch.testing.assert_close(fast, codec.encode(pixels), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [flux_vae, qwen_vae])
def test_vae_training_and_that_of_the_decoder_alone(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    vae = make()
    pixels = to_pixels(pair.target for pair in make_pairs(BASE_EDITS, 779, 4))
    before = encode(vae, pixels)
    reports = list(train_vae(vae, pixels, steps=2, batch_size=2, seed=1, decoder_only=True))
    torch.testing.assert_close(encode(vae, pixels), before)
    assert [report.step for report in reports] == [1, 2]
    reports += train_vae(vae, pixels, steps=2, batch_size=2, seed=1)
    assert (encode(vae, pixels) - before).abs().max() > 1e-3
    assert np.isfinite([report.loss for report in reports]).all()


def test_everything_is_small_and_safe() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 32e6
    assert {path.suffix for path in files} <= {".py", ".json", ".safetensors", ".txt", ".jinja"}


def test_configurations_are_the_code_s() -> None:
    for family, part, made in (
        ("flux-kontext", "transformer", flux_transformer()),
        ("flux-kontext", "vae", flux_vae()),
        ("qwen-image-edit", "transformer", qwen_transformer()),
        ("qwen-image-edit", "vae", qwen_vae()),
        ("qwen-image-edit-plus", "transformer", qwen_transformer()),
        ("flux2-klein", "transformer", flux2_transformer()),
        ("flux2-klein", "vae", flux2_vae(flux_vae())),
    ):
        stored = type(made).from_pretrained(EMBEDDED / family, subfolder=part, local_files_only=True)
        shapes = [{name: p.shape for name, p in module.named_parameters()} for module in (stored, made)]
        assert shapes[0] == shapes[1]


def test_the_model_for_several_images_has_only_a_transformer_of_its_own(tmp_path: Path) -> None:
    assert {path.name for path in PLUS.iterdir()} == {"model_index.json", "transformer"}
    write_parts_beside(EMBEDDED / "qwen-image-edit", tmp_path / "begun")
    configs, weights = (
        [read(folder / "transformer") for folder in (EMBEDDED / "qwen-image-edit", tmp_path / "begun", PLUS)]
        for read in (read_config, read_weights)
    )
    assert [config.pop("zero_cond_t") for config in configs] == [False, True, True]
    for config in configs:
        config.pop("_diffusers_version")  # of whoever made it
    assert configs[0] == configs[1] == configs[2]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in ("img_in.weight", "proj_out.weight"))
    assert (PLUS / "model_index.json").read_bytes() == (tmp_path / "begun" / "model_index.json").read_bytes()


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_shared_parts_are_found_beside_a_copy(tmp_path: Path) -> None:
    for name in ("qwen-image-edit", "qwen-image-edit-plus"):
        shutil.copytree(EMBEDDED / name, tmp_path / name)
    embedded, copied = (open_model("tiny/qwen-image-edit-plus", folder) for folder in (None, tmp_path / PLUS.name))
    for component in ("transformer", "vae", "text"):
        assert copied.fingerprint(component) == embedded.fingerprint(component)
    shutil.rmtree(tmp_path / "qwen-image-edit" / "vae")
    with pytest.raises(BadInput, match="cannot be loaded"):
        open_model("tiny/qwen-image-edit-plus", tmp_path / PLUS.name).load_codec("cpu", torch.float32)


@pytest.mark.slow
def test_the_model_for_several_images_is_a_whole_pipeline_with_what_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    for area in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
        monkeypatch.setattr(plus_module, area, SIZE**2)
    shared = EMBEDDED / "qwen-image-edit"
    transformer = QwenImageTransformer2DModel.from_pretrained(PLUS, subfolder="transformer", local_files_only=True)
    pipeline = QwenImageEditPlusPipeline.from_pretrained(
        shared,
        torch_dtype=torch.float32,
        processor=load_processor(shared),
        transformer=transformer.float(),
        local_files_only=True,
    )
    pair = make_pair("recolor_as", 9, 0)
    image = pipeline(
        image=pair.controls, prompt=pair.caption, height=SIZE, width=SIZE, num_inference_steps=2, true_cfg_scale=1.0
    ).images[0]
    assert image.size == (SIZE, SIZE)
    assert np.asarray(image).std() > 0


@pytest.mark.slow
def test_kontext_is_a_whole_pipeline() -> None:
    folder = EMBEDDED / "flux-kontext"
    pipeline = FluxKontextPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pair = make_pair("recolor", 9, 0)
    image = pipeline(
        image=pair.control,
        prompt=pair.caption,
        height=SIZE,
        width=SIZE,
        num_inference_steps=2,
        max_sequence_length=32,
        max_area=SIZE**2,
        _auto_resize=False,
    ).images[0]
    assert image.size == (SIZE, SIZE)
    assert np.asarray(image).std() > 0


@pytest.mark.slow
def test_klein_is_a_whole_pipeline() -> None:
    folder = EMBEDDED / "flux2-klein"
    pipeline = Flux2KleinPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    assert pipeline.config.is_distilled is False
    pair = make_pair("recolor_as", 9, 0)
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "max_sequence_length": 32}
    image = pipeline(image=pair.controls, prompt=pair.caption, guidance_scale=1.0, **options).images[0]
    assert image.size == (SIZE, SIZE)
    assert np.asarray(image).std() > 0


@pytest.mark.slow
def test_qwen_is_a_whole_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_module, "calculate_dimensions", lambda area, ratio: (SIZE, SIZE, None))
    folder = EMBEDDED / "qwen-image-edit"
    pipeline = QwenImageEditPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, processor=load_processor(folder), local_files_only=True
    )
    pair = make_pair("recolor", 9, 0)
    image = pipeline(
        image=pair.control, prompt=pair.caption, height=SIZE, width=SIZE, num_inference_steps=2, true_cfg_scale=1.0
    ).images[0]
    assert image.size == (SIZE, SIZE)
    assert np.asarray(image).std() > 0
