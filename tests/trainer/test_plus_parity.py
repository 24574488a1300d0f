"""With several controls, what the family hands its transformer is what QwenImageEditPlusPipeline hands its own, to the
last bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

from trainer.data.resize import Size
from trainer.models.edit_model import EditModel
from trainer.models.qwen_processor import load_processor

from .plus_models import EDIT_2509, EDIT_2511, SMALL_SIDE, plus_model, small
from .test_parity import PROMPT, aligned, assert_same, captured, draw, picture

pytestmark = pytest.mark.slow

CONTROLS = {
    "one": [Size(131, 80)],
    "two": [Size(100, 100), Size(60, 131)],
    "three": [Size(131, 60), Size(333, 300), Size(64, 100)],
}


@pytest.fixture(scope="module", params=[EDIT_2509, EDIT_2511], ids=["2509", "2511"])
def model(request: pytest.FixtureRequest, qwen: EditModel, tmp_path_factory: pytest.TempPathFactory) -> EditModel:
    return plus_model(request.param, qwen, tmp_path_factory.mktemp("plus") / "model")


@pytest.fixture(scope="module")
def pipeline(model: EditModel) -> QwenImageEditPlusPipeline:
    pipeline = QwenImageEditPlusPipeline.from_pretrained(model.folder, processor=load_processor(model.folder))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.config.zero_cond_t == (model.base_model == EDIT_2511)
    return aligned(pipeline)


@pytest.fixture
def small_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline with the areas of a small model in place of 1024 x 1024 and 384 x 384."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", SMALL_SIDE**2)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", (SMALL_SIDE * 384 // 1024) ** 2)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("controls", CONTROLS)
def test_it_equals_its_pipeline(model, pipeline, small_area, controls, guidance):
    sizes, size = CONTROLS[controls], Size(144, 112)
    with captured(pipeline.transformer) as theirs:
        pixels = pipeline(
            [picture(own) for own in sizes],
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
    assert len(theirs[0]["img_shapes"][0]) == 1 + len(sizes)
    assert_same(draw(model, small(model.family), sizes, size, guidance), theirs, pixels)


@pytest.mark.parametrize("model", [EDIT_2511], ids=["2511"], indirect=True)
def test_it_equals_its_pipeline_at_full_size(model, pipeline):
    """The size of the image follows from the last control, in both models by the same rule."""
    sizes = [Size(1000, 700), Size(500, 1000)]
    with captured(pipeline.transformer, stop=True) as theirs:
        pipeline(
            [picture(own) for own in sizes],
            PROMPT,
            num_inference_steps=3,
            true_cfg_scale=1.0,
            generator=torch.Generator().manual_seed(0),
        )
    size = model.family.target_size(sizes[-1], 1024)
    assert_same(draw(model, model.family, sizes, size, 1.0, stop=True), theirs, None)
