"""The sampler as a generator, and editing one image from a handle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.data.resize import Size
from trainer.errors import BadInput
from trainer.events import Progress
from trainer.inference import DenoiseInputs, DenoiseOptions, denoise, edit
from trainer.lora.adapter import LoraAdapter
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel, open_model

CPU, F32 = "cpu", torch.float32


def run(generator) -> tuple[list[Progress], object]:
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def control_image() -> Image.Image:
    image = Image.new("RGB", (60, 60), "white")
    image.paste((200, 30, 30), (10, 10, 40, 50))
    return image


@pytest.mark.slow
def test_an_edit_is_reproducible_and_has_the_asked_size(model: EditModel):
    events, first = run(edit(model, control_image(), "make it red", seed=7, steps=2, size=Size(80, 48)))
    again = run(edit(model, control_image(), "make it red", seed=7, steps=2, size=Size(80, 48)))[1]
    other = run(edit(model, control_image(), "make it red", seed=8, steps=2, size=Size(80, 48)))[1]
    assert first.size == (80, 48) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert [(event.done, event.total) for event in events if event.phase == "sampling"] == [(1, 2), (2, 2)]
    assert [event.done for event in events if event.phase == "loading"] == [0, 1, 2, 3]


@pytest.mark.slow
def test_an_edit_of_one_step_is_a_picture():
    image = run(edit(open_model("tiny/qwen-image-edit"), control_image(), "make it red", steps=1))[1]
    assert isinstance(image, Image.Image) and len(image.getcolors(1 << 16) or ()) > 1


@pytest.mark.slow
def test_defaults_are_the_familys(model: EditModel):
    events, image = run(edit(model, control_image(), "make it red"))
    assert image.size == model.family.edit_size([Size(*control_image().size)])
    assert events[-1].total == model.family.variant.sample_steps


def test_no_grad_context_stays_open_between_steps(model: EditModel):
    drawing = edit(model, control_image(), "make it red", steps=3)
    for _ in drawing:
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        break
    for _ in drawing:
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_sampling_touches_no_global_randomness(model: EditModel):
    family, codec, encoder = model.family, model.load_codec(CPU, F32), model.load_text_encoder(CPU, F32)
    control = family.prepare_control(control_image(), Size(64, 64))
    text, packed = encoder.encode("a", [control]), family.pack(family.encode(codec, control))
    components = ModelComponents(model, torch.device(CPU), Plan(precision="fp32", dtype=F32, offload="none"))
    components.transformer()
    before = torch.get_rng_state()
    arguments = (components, DenoiseInputs([packed], text, None, Size(64, 64)), DenoiseOptions(2, 1.0, 5))
    first = run(denoise(*arguments))[1]
    assert torch.equal(before, torch.get_rng_state())
    abandoned = denoise(*arguments)
    next(abandoned)
    abandoned.close()
    assert torch.equal(first, run(denoise(*arguments))[1])


def test_a_negative_prompt_without_use_is_refused(kontext: EditModel, qwen: EditModel):
    for model, guidance in ((kontext, 4.0), (qwen, 1.0)):
        with pytest.raises(BadInput, match="negative prompt"):
            run(edit(model, control_image(), "make it red", negative_prompt="blurry", guidance=guidance))
    plain = run(edit(qwen, control_image(), "make it red", guidance=4.0, steps=2))[1]
    guided = run(edit(qwen, control_image(), "make it red", negative_prompt="blurry", guidance=4.0, steps=2))[1]
    assert plain.tobytes() != guided.tobytes()


@pytest.mark.slow
def test_an_edit_wears_its_lora_at_its_strength(model: EditModel, tmp_path: Path):
    transformer = model.load_transformer(CPU, F32)
    targets = model.family.lora_targets("attention+mlp", transformer)
    adapter = LoraAdapter(transformer, targets, rank=2, alpha=2, seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapter.export(tmp_path / "lora.safetensors", F32, {})

    def edited(model: EditModel, **options: Any) -> bytes:
        return run(edit(model, control_image(), "make it red", steps=2, **options))[1].tobytes()

    plain, worn = edited(model), edited(model, lora=tmp_path / "lora.safetensors")
    assert edited(model, lora=tmp_path / "lora.safetensors", lora_strength=0.0) == plain != worn
    assert edited(model.with_adapter(tmp_path / "lora.safetensors")) == worn
