"""What FLUX.2 [klein]'s family hands its transformer is what Flux2KleinPipeline hands its own, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

from trainer.data.resize import Size
from trainer.models.diffusers_family import from_folder
from trainer.models.edit_model import EditModel

from .klein_models import KLEIN_4B, klein_model
from .test_parity import CPU, F32, PROMPT, aligned, assert_same, captured, draw, picture

pytestmark = pytest.mark.slow

CONTROLS = {
    "one": [Size(131, 80)],
    "two": [Size(100, 100), Size(66, 131)],
    "three": [Size(131, 64), Size(333, 300), Size(64, 100)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klein") / "model"
    klein_model(folder)
    _draw_statistics(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> EditModel:
    return klein_model(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Flux2KleinPipeline:
    pipeline = Flux2KleinPipeline.from_pretrained(folder, **from_folder(F32))
    pipeline.set_progress_bar_config(disable=True)
    return aligned(pipeline)


def _draw_statistics(folder: Path) -> None:
    """Give the batch norm means and variances that no swap or slip leaves the same."""
    from safetensors.torch import load_file, save_file

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors, generator = load_file(path), torch.Generator().manual_seed(0)
    mean, variance = tensors["bn.running_mean"], tensors["bn.running_var"]
    tensors["bn.running_mean"] = torch.randn(mean.shape, generator=generator).to(mean.dtype)
    tensors["bn.running_var"] = (0.5 + torch.rand(variance.shape, generator=generator)).to(variance.dtype)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("controls", CONTROLS)
def test_it_equals_its_pipeline(model, pipeline, controls, guidance):
    sizes, size = CONTROLS[controls], Size(144, 112)
    with captured(pipeline.transformer) as theirs:
        pixels = pipeline(
            [picture(own) for own in sizes],
            PROMPT,
            width=size.width,
            height=size.height,
            num_inference_steps=3,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
    assert len(theirs) == (6 if guidance > 1 else 3)
    ids = theirs[0]["img_ids"][0]
    assert ids[:, 0].unique().tolist() == [10 * index for index in range(len(sizes) + 1)]
    assert_same(draw(model, model.family, sizes, size, guidance), theirs, pixels)


def test_the_size_follows_the_first_control_and_large_ones_are_shrunk(model, pipeline):
    sizes = [Size(1300, 900), Size(500, 1100)]
    with captured(pipeline.transformer, stop=True) as theirs:
        pipeline(
            [picture(own) for own in sizes],
            PROMPT,
            num_inference_steps=3,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
        )
    size = model.family.sample_size(model.family.edit_size(sizes))
    assert_same(draw(model, model.family, sizes, size, 1.0, stop=True), theirs, None)


@pytest.mark.parametrize("words", [1, 600])
def test_a_text_of_any_length_is_encoded_as_the_pipeline_does(model, pipeline, words):
    caption = " ".join(["red"] * words)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(caption, device=torch.device(CPU))
    assert torch.equal(model.load_text_encoder(CPU, F32).encode(caption, [])["prompt_embeds"], theirs)


def test_a_control_token_in_a_caption_is_text(model):
    encoder = model.load_text_encoder(CPU, F32)
    ends, letters = (encoder.encode(caption, [])["prompt_embeds"] for caption in ("a <|im_end|> b", "a <|im_emd|> b"))
    assert torch.equal(ends[:, :3], letters[:, :3])
    tokens = encoder.pipeline.tokenizer
    text = tokens.apply_chat_template([{"role": "user", "content": "a <|im_end|> b"}], tokenize=False)
    ids = tokens(text, return_tensors="pt", padding="max_length", truncation=True, max_length=64)["input_ids"][0]
    plain = tokens.tokenizer("a <|im_end|> b", split_special_tokens=True).input_ids
    assert ids[3 : 3 + len(plain)].tolist() == plain
    assert (ids == tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1


@pytest.mark.parametrize(
    "size", [Size(64, 512), Size(512, 64), Size(64, 64), Size(79, 632), Size(63, 99), Size(64, 900)]
)
def test_images_that_the_pipeline_refuses_are_refused(model, size):
    """All but those of up to a token above the largest aspect ratio."""
    family = model.family
    try:
        Flux2ImageProcessor.check_image_input(picture(size))
    except ValueError:
        assert family.size_fault(family.control_size(size, size, "inference"))
    else:
        assert not family.size_fault(family.control_size(size, size, "inference"))


def test_the_published_configs_are_read(model):
    config = json.loads((model.family.configs / "transformer" / "config.json").read_text())
    assert model.base_model == KLEIN_4B
    assert config["joint_attention_dim"] == 3 * 2560
