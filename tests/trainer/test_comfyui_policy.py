"""The policy `comfyui` without ComfyUI: sizes, odd grids, and captions of unequal length in one micro-batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.resize import Box, Size, centre_crop, cut_to_multiples
from trainer.families.records import FLUX_KONTEXT, QWEN_IMAGE_EDIT
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.comfyui_parity import ComfyFluxKontext, ComfyQwenImageEdit, image_positions, text_positions
from trainer.models.edit_model import open_model
from trainer.models.types import Grid, PackedLatents, TextConditioning
from trainer.training.batch import Batch, TextGroup
from trainer.training.batch_sampler import Position
from trainer.training.step import micro_step

KONTEXT = ComfyFluxKontext(FLUX_KONTEXT.variants[0], {})
QWEN = ComfyQwenImageEdit(QWEN_IMAGE_EDIT.variants[0], {})
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("image", "kontext", "qwen"),
    [
        ((512, 512), (1024, 1024), (1024, 1024)),
        ((1000, 421), (1568, 672), (1578, 664)),
        ((421, 1000), (672, 1568), (664, 1578)),
        ((701, 523), (1184, 880), (1186, 884)),
        ((3, 3000), (672, 1568), (32, 32382)),
    ],
)
def test_a_control_gets_comfyuis_size(image, kontext, qwen):
    for family, expected in ((KONTEXT, kontext), (QWEN, qwen)):
        assert family.control_size(Size(*image), Size(64, 64), "inference") == expected


@pytest.mark.parametrize("family", [KONTEXT, QWEN])
def test_at_the_targets_resolution_the_control_has_its_area(family):
    target = family.target_size(Size(1000, 421), 256)
    control = family.control_size(Size(1000, 421), target, "target")
    assert control.width > 2 * control.height
    assert control.width * control.height == pytest.approx(target.width * target.height, rel=0.05)


def test_crops_are_taken_from_the_middle():
    assert centre_crop(Size(200, 100), Size(64, 64)) == Box(50, 0, 150, 100)
    assert centre_crop(Size(100, 203), Size(64, 64)) == Box(0, 52, 100, 151)
    assert centre_crop(Size(64, 64), Size(32, 32)) == Box(0, 0, 64, 64)
    assert cut_to_multiples(Size(1186, 884), 8) == Box(1, 2, 1185, 882)


def test_kontexts_target_is_cropped_like_its_control():
    values = np.zeros((100, 200, 3), np.uint8)
    values[:, 50:150] = 255
    image = Image.fromarray(values)
    for prepared in (KONTEXT.prepare_control(image, Size(64, 64)), KONTEXT.prepare_target(image, Size(64, 64))):
        assert prepared.shape == (1, 3, 64, 64)
        assert prepared.min() == 1


def test_an_odd_grid_is_padded_with_its_beginning():
    latents = torch.randn(1, 16, 5, 7)
    packed = QWEN.pack(latents)
    assert packed.grid == Grid(3, 4)
    full_tensor = QWEN.unpack(packed)
    assert torch.equal(full_tensor[..., :5, :7], latents)
    assert torch.equal(full_tensor[..., 5, :7], latents[..., 0, :])
    assert torch.equal(full_tensor[..., :5, 7], latents[..., :, 0])
    assert torch.equal(full_tensor[..., 5, 7], latents[..., 0, 0])


def test_an_odd_grid_has_its_middle_at_zero_and_the_text_follows_the_target():
    positions = image_positions((1, 3, 4), 1)
    assert positions[0].tolist() == [1, -1, -2]
    assert positions[-1].tolist() == [1, 1, 1]
    assert text_positions((1, 3, 4), 2).tolist() == [[2, 2, 2], [3, 3, 3]]


@pytest.fixture(scope="module")
def components() -> ModelComponents:
    model = replace(open_model("tiny/flux-kontext"), policy="comfyui")
    components = ModelComponents(model, CPU, Plan(precision="fp32", dtype=torch.float32, offload="none"))
    components.transformer().requires_grad_(True)
    return components


def micro_batch(
    components: ModelComponents, rows: list[int], texts: list[TextConditioning], latents: torch.Tensor
) -> Batch:
    family = components.model.family
    clean, noise, control = (family.pack(part[rows]) for part in latents)
    chosen = [texts[row] for row in rows]
    return Batch(
        examples=rows,
        clean=clean,
        noise=noise.tokens,
        controls=(PackedLatents(control.tokens, control.grid),),
        texts=tuple(
            TextGroup(group, family.collate_text([chosen[place] for place in group]))
            for group in family.text_groups(chosen)
        ),
        sigmas=torch.tensor([0.2, 0.5, 0.9])[rows],
        weights=torch.tensor([1.0, 0.5, 2.0])[rows],
        next_position=Position(0, 0),
    )


def test_captions_of_unequal_length_share_a_micro_batch(components: ModelComponents):
    draw = torch.Generator().manual_seed(1)
    config = components.transformer().config
    texts = [
        {
            "prompt_embeds": torch.randn(1, length, config.joint_attention_dim, generator=draw),
            "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim, generator=draw),
        }
        for length in (12, 20, 12)
    ]
    latents = torch.randn(3, 3, 16, 8, 8, generator=draw)
    results = []
    for batches in ([[0, 1, 2]], [[0], [1], [2]]):
        components.transformer().zero_grad()
        loss = sum(micro_step(components, micro_batch(components, rows, texts, latents), 3, 1.0) for rows in batches)
        gradients = [parameter.grad.flatten() for parameter in components.transformer().parameters()]
        results.append((loss, torch.cat(gradients)))
    (together, gradient), (alone, expected) = results
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6)
