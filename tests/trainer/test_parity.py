"""What a family hands its transformer is what the diffusers pipeline hands its own, to the last bit."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import DiffusionPipeline, FluxKontextPipeline, QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image

from trainer.data.resize import Size
from trainer.families.info import Variant
from trainer.families.records import FLUX_KONTEXT, QWEN_IMAGE_EDIT
from trainer.inference import DenoiseInputs, DenoiseOptions, denoise
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models import qwen_image_edit
from trainer.models.edit_model import EditModel
from trainer.models.family import Family
from trainer.models.qwen_processor import load_processor

CPU, F32 = "cpu", torch.float32
PROMPT = "make it red"
SQUARE, WIDE, TALL = Size(64, 64), Size(80, 48), Size(48, 80)


class Captured(Exception):
    """Ends a pipeline's call at its first forward pass."""


@contextmanager
def captured(transformer: torch.nn.Module, *, stop: bool = False) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of every forward pass inside the block; with `stop` the first one ends it."""
    calls: list[dict[str, Any]] = []

    def hook(_module: torch.nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(kwargs)
        if stop:
            raise Captured

    handle = transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield calls
    except Captured:
        pass
    finally:
        handle.remove()


def picture(size: Size) -> Image.Image:
    """Noise, so that no shift, swap or other filter goes unseen."""
    pixels = torch.randint(0, 256, (size.height, size.width, 3), generator=torch.Generator().manual_seed(1))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def finish(drawing: Generator[Any, None, torch.Tensor]) -> torch.Tensor:
    while True:
        try:
            next(drawing)
        except StopIteration as end:
            return end.value


def assert_same_call(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every argument equal, tensors bit for bit; the pipelines' empty attention options aside."""
    theirs = {name: value for name, value in theirs.items() if not name.endswith("attention_kwargs")}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


@dataclass
class Drawn:
    """What our sampler handed its transformer, and what came of it."""

    calls: list[dict[str, Any]]
    pixels: torch.Tensor | None
    """[1, 3, H, W] in 0..1, where the sampler ran to its end."""


def draw(
    model: EditModel, family: Family, controls: Sequence[Size], size: Size, guidance: float, stop: bool = False
) -> Drawn:
    """Our sampler, in three steps, on pictures of these sizes, everything from the family's own policy."""
    codec, encoder = model.load_codec(CPU, F32), model.load_text_encoder(CPU, F32)
    seen, packed = [], []
    for own in controls:
        latent_size = family.control_size(own, size, "inference")
        seen.append(family.prepare_control(picture(own), family.text_control_size(own, latent_size)))
        packed.append(family.pack(family.encode(codec, family.prepare_control(picture(own), latent_size))))
    text, negative = encoder.encode(PROMPT, seen), family.negative_prompt(PROMPT, guidance)
    negative_text = None if negative is None else encoder.encode(negative, seen)
    components = ModelComponents(model, torch.device(CPU), Plan(precision="fp32", dtype=F32, offload="none"))
    pixels = None
    with captured(components.transformer(), stop=stop) as calls, patch.object(EditModel, "family", family):
        inputs = DenoiseInputs(packed, text, negative_text, size)
        latents = finish(denoise(components, inputs, DenoiseOptions(3, guidance, 0)))
        pixels = (codec.decode(family.denormalize(latents)) / 2 + 0.5).clamp(0, 1)
    return Drawn(calls, pixels)


def assert_same(ours: Drawn, theirs: list[dict[str, Any]], their_pixels: torch.Tensor | None) -> None:
    assert len(ours.calls) == len(theirs)
    for our_call, their_call in zip(ours.calls, theirs, strict=True):
        assert_same_call(our_call, their_call)
    if their_pixels is not None:
        assert ours.pixels.shape == their_pixels.shape
        torch.testing.assert_close(ours.pixels, their_pixels, rtol=0, atol=1e-4)


def full_size(model: EditModel, scale: Variant) -> Family:
    """The full-size model's policy over the small weights."""
    return type(model.family)(replace(scale, text_length=32), model.family.vae_config)


def aligned(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """With the transformer's weights in memory of their own: the CPU's products differ in their last bits with where
    in a file's memory a weight begins."""
    for parameter in pipeline.transformer.parameters():
        parameter.data = parameter.data.clone()
    return pipeline


@pytest.fixture(scope="module")
def kontext_pipeline(kontext: EditModel) -> FluxKontextPipeline:
    pipeline = aligned(FluxKontextPipeline.from_pretrained(kontext.folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def qwen_pipeline(qwen: EditModel) -> QwenImageEditPipeline:
    pipeline = aligned(QwenImageEditPipeline.from_pretrained(qwen.folder, processor=load_processor(qwen.folder)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """QwenImageEditPipeline with an area of 64 x 64 in place of its fixed 1024 x 1024."""
    original = pipeline_qwenimage_edit.calculate_dimensions
    # The family binds the function when its module is imported, which must not be while it is another one.
    assert qwen_image_edit.calculate_dimensions is original
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _area, ratio: original(64**2, ratio))


@pytest.mark.slow
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
@pytest.mark.parametrize("control", [SQUARE, WIDE, TALL])
def test_kontext_equals_its_pipeline(kontext, kontext_pipeline, control, size):
    with captured(kontext_pipeline.transformer) as theirs:
        pixels = kontext_pipeline(
            picture(control),
            PROMPT,
            width=size.width,
            height=size.height,
            max_area=size.width * size.height,
            _auto_resize=False,
            num_inference_steps=3,
            guidance_scale=2.5,
            max_sequence_length=32,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
    assert_same(draw(kontext, kontext.family, [control], size, 2.5), theirs, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
@pytest.mark.parametrize("control", [Size(64, 64), Size(131, 50), Size(50, 131)])
def test_qwen_equals_its_pipeline(qwen, qwen_pipeline, tiny_area, control, size, guidance):
    with captured(qwen_pipeline.transformer) as theirs:
        pixels = qwen_pipeline(
            picture(control),
            PROMPT,
            negative_prompt=" ",
            width=size.width,
            height=size.height,
            num_inference_steps=3,
            true_cfg_scale=guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
    assert len(theirs) == (6 if guidance > 1 else 3)
    assert_same(draw(qwen, qwen.family, [control], size, guidance), theirs, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("control", [Size(300, 300), Size(1000, 700), Size(700, 1000), Size(1900, 650), Size(333, 777)])
def test_kontext_equals_its_pipeline_at_full_size(kontext, kontext_pipeline, control):
    size = Size(1248, 832)
    with captured(kontext_pipeline.transformer, stop=True) as theirs:
        kontext_pipeline(
            picture(control),
            PROMPT,
            width=size.width,
            height=size.height,
            max_area=size.width * size.height,
            max_sequence_length=32,
            guidance_scale=2.5,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
        )
    ours = draw(kontext, full_size(kontext, FLUX_KONTEXT.variants[0]), [control], size, 2.5, stop=True)
    assert_same(ours, theirs, None)


@pytest.mark.slow
@pytest.mark.parametrize("control", [Size(1000, 700), Size(700, 1000)])
def test_qwen_equals_its_pipeline_at_full_size(qwen, qwen_pipeline, control):
    family = full_size(qwen, QWEN_IMAGE_EDIT.variants[0])
    with captured(qwen_pipeline.transformer, stop=True) as theirs:
        qwen_pipeline(
            picture(control),
            PROMPT,
            num_inference_steps=3,
            true_cfg_scale=1.0,
            generator=torch.Generator().manual_seed(0),
        )
    size = family.target_size(control, 1024)
    assert_same(draw(qwen, family, [control], size, 1.0, stop=True), theirs, None)
