"""Qwen-Image-Edit-2509 and -2511: sizes, texts, and training steps with several controls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image

from trainer.data.resize import Size
from trainer.errors import BadInput
from trainer.events import drain
from trainer.inference import DenoiseInputs, DenoiseOptions, denoise
from trainer.lora.adapter import read_lora
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family, family_class
from trainer.models.types import Grid, PackedLatents, TextConditioning
from trainer.modules import blocks_of
from trainer.training.batch import Batch

from .plus_models import EDIT_2509, EDIT_2511, plus_model
from .steps import CPU, deepened, plan, random_batch, trained

BOTH = [EDIT_2509, EDIT_2511]
F32 = torch.float32


@pytest.fixture(scope="module")
def models(qwen: EditModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EditModel]:
    """Small models of both."""
    place = tmp_path_factory.mktemp("plus")
    return {name: plus_model(name, qwen, place / name.rpartition("-")[2]) for name in BOTH}


# sizes


@pytest.mark.parametrize(
    ("image", "latents", "seen"),
    [
        ((1024, 1024), (1024, 1024), (384, 384)),
        ((1000, 421), (1568, 672), (576, 256)),
        ((421, 1000), (672, 1568), (256, 576)),
        ((700, 523), (1184, 896), (448, 320)),
        ((10, 2000), (64, 14496), (32, 5440)),
    ],
)
def test_a_control_gets_two_sizes_of_the_pipeline(image, latents, seen):
    family = open_model(EDIT_2511).family
    assert family.control_size(Size(*image), Size(64, 64), "inference") == latents
    assert family.text_control_size(Size(*image), Size(*latents)) == seen


@pytest.mark.parametrize(
    ("image", "latents", "seen"),
    [
        ((1024, 1024), (1024, 1024), (384, 384)),
        ((1000, 421), (1576, 664), (592, 249)),
        ((421, 1000), (664, 1576), (249, 592)),
        ((701, 523), (1184, 888), (445, 332)),
        ((10, 2000), (72, 14480), (27, 5431)),
    ],
)
def test_a_control_gets_two_sizes_of_comfyuis(image, latents, seen):
    family = family_class(EDIT_2509, "comfyui")(open_model(EDIT_2509).family.variant, {})
    assert family.control_size(Size(*image), Size(64, 64), "inference") == latents
    assert family.text_control_size(Size(*image), Size(*latents)) == seen


def test_the_first_image_of_an_edit_is_scaled_and_sizes_it_as_in_comfyuis_templates():
    family = family_class(EDIT_2511, "comfyui")(open_model(EDIT_2511).family.variant, {})
    images = [Image.new("RGB", size) for size in ((1000, 421), (333, 777))]
    fitted = family.fit_controls(images)
    assert [image.size for image in fitted] == [(1568, 672), (333, 777)]
    assert family.edit_size([Size(*image.size) for image in fitted]) == (1568, 672)
    assert family.sample_size(Size(1568, 672)) == (1568, 672)


def test_the_pipeline_sizes_an_edit_by_its_last_image():
    family, images = open_model(EDIT_2511).family, [Image.new("RGB", size) for size in ((1000, 421), (512, 512))]
    assert family.fit_controls(images) == images
    assert family.edit_size([Size(*image.size) for image in images]) == (1024, 1024)


@pytest.mark.parametrize("policy", ["diffusers", "comfyui"])
def test_at_the_targets_resolution_the_text_sees_a_control_as_ever(policy):
    family = family_class(EDIT_2509, policy)(open_model(EDIT_2509).family.variant, {})
    latents = family.control_size(Size(1000, 700), Size(512, 512), "target")
    assert latents.width * latents.height == pytest.approx(512**2, rel=0.05)
    seen = family.text_control_size(Size(1000, 700), latents)
    assert seen.width * seen.height == pytest.approx(384**2, rel=0.05)


def test_a_caption_has_more_room_than_beside_a_large_image(models):
    room = models[EDIT_2509].family.caption_room(Size(1024, 1024), [Size(1024, 1024)] * 3)
    assert 3300 < room < 4096


# texts


def pictures(*sizes: Size) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, size.height, size.width, generator=draw) for size in sizes]


def test_every_control_changes_the_text_and_so_does_their_order(models):
    encoder = models[EDIT_2509].load_text_encoder(CPU, F32)
    first, second = pictures(Size(64, 64), Size(96, 64))
    one, both, swapped = (encoder.encode("red", shown) for shown in ([first], [first, second], [second, first]))
    assert one["prompt_embeds"].shape[1] < both["prompt_embeds"].shape[1] == swapped["prompt_embeds"].shape[1]
    assert not torch.equal(both["prompt_embeds"], swapped["prompt_embeds"])


def test_a_text_without_controls_is_the_pipelines(models):
    encoder = models[EDIT_2511].load_text_encoder(CPU, F32)
    expected, _ = encoder.pipeline.encode_prompt("red", image=None, device=CPU)
    assert torch.equal(encoder.encode("red", [])["prompt_embeds"], expected)


@pytest.mark.parametrize("count", [0, 2])
def test_control_tokens_in_a_caption_are_letters(models, count):
    encoder = models[EDIT_2511].load_text_encoder(CPU, F32)
    shown = pictures(*[Size(64, 64)] * count)
    plain, pad = (encoder.encode(caption, shown)["prompt_embeds"] for caption in ("red", "red <|image_pad|>"))
    assert pad.shape[1] == plain.shape[1] + len(" <|image_pad|>"), "the small tokenizer has a token for each byte"
    assert torch.isfinite(pad).all()


# the transformer


@pytest.mark.slow
@pytest.mark.parametrize("base_model", BOTH)
def test_lora_targets_of_the_full_size_models(base_model):
    model = open_model(base_model)
    transformer = model.empty_transformer()
    assert transformer.config["zero_cond_t"] == (base_model == EDIT_2511)
    names = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    counts = []
    for which in ("attention", "attention+mlp", "all-linear"):
        pattern = re.compile(model.family.lora_targets(which, transformer))
        counts.append(len([name for name in names if pattern.fullmatch(name)]))
    assert counts == [60 * 8 - 2, 60 * 12 - 4, 60 * 14 - 4]


def several(model: EditModel, seed: int, texts: Sequence[int] = (6,)) -> Batch:
    """A micro-batch with two controls of different sizes."""
    batch, other = random_batch(model, seed, texts), random_batch(model, seed + 50, texts)
    wide = PackedLatents(torch.cat([other.noise, other.noise[:, :8]], dim=1), Grid(4, 6))
    return replace(batch, controls=(batch.controls[0], wide))


@pytest.fixture(scope="module")
def deep(models, tmp_path_factory) -> EditModel:
    return deepened(models[EDIT_2511], tmp_path_factory.mktemp("deep") / "2511")


def plans(count: int) -> dict[str, Plan]:
    full = {"activation_checkpointing": ("full",) * count}
    return {
        "modulation": plan(modulation_on_host=True),
        "full": plan(**full),
        "selective": plan(activation_checkpointing=("selective",) * count),
        "all": plan(streamed=frozenset(range(count)), inputs_on_host=True, modulation_on_host=True, **full),
    }


@pytest.fixture(scope="module")
def batches(deep) -> list[Batch]:
    return [several(deep, 1), several(deep, 2, (6, 6)), several(deep, 3, (6, 4))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modulation", "full", "selective", "all"])
def test_every_plan_gives_the_plain_steps(deep, batches, name):
    """With the controls' tokens at timestep 0 and the modulation of both timesteps computed ahead, to the bit."""
    ran = trained(deep, plans(len(blocks_of(deep.empty_transformer())))[name], batches)
    assert all(gradient.any() for gradient in ran.gradients[0].values())
    assert ran.equals(trained(deep, plan(), batches))


@pytest.mark.slow
def test_samples_are_the_same_with_modulation_computed_ahead(deep):
    def drawn(how: Plan) -> torch.Tensor:
        batch, components = several(deep, 7), ModelComponents(deep, CPU, how)
        negative = random_batch(deep, 8, (4,)).texts[0].text
        inputs = DenoiseInputs(batch.controls, batch.texts[0].text, negative, Size(64, 64))
        return drain(denoise(components, inputs, DenoiseOptions(3, 2.5, 1)))

    assert torch.equal(drawn(plans(len(blocks_of(deep.empty_transformer())))["all"]), drawn(plan()))


@pytest.mark.slow
@pytest.mark.parametrize("base_model", BOTH)
def test_a_batch_gives_the_mean_of_its_examples(models, base_model):
    model = models[base_model]
    batch = several(model, 4, (6, 9))
    transformer = model.load_transformer(CPU, F32).requires_grad_(True)
    singles = [loss_and_gradient(model.family, transformer, batch, slice(row, row + 1)) for row in (0, 1)]
    loss, gradient = loss_and_gradient(model.family, transformer, batch, slice(0, 2))
    mean_loss, mean_gradient = ((first + second) / 2 for first, second in zip(*singles, strict=True))
    assert abs(loss - mean_loss) <= 1e-5 * mean_loss
    assert torch.norm(gradient - mean_gradient) <= 1e-5 * torch.norm(mean_gradient)


def loss_and_gradient(
    family: Family, transformer: torch.nn.Module, batch: Batch, rows: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """MSE of the velocity for some rows of a batch, and the gradient of all weights, flat."""
    controls = [PackedLatents(control.tokens[rows], control.grid) for control in batch.controls]
    noisy = PackedLatents(batch.noise[rows], batch.clean.grid)
    velocity = family.predict(transformer, noisy, controls, text_of(batch, rows), batch.sigmas[rows], 1.0)
    loss = torch.nn.functional.mse_loss(velocity, batch.clean.tokens[rows])
    gradients = torch.autograd.grad(loss, list(transformer.parameters()), allow_unused=True)
    return loss, torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def text_of(batch: Batch, rows: slice) -> TextConditioning:
    """The texts of some rows; a single one has no padding."""
    (group,) = batch.texts
    text = {name: tensor[rows] for name, tensor in group.text.items()}
    mask = text["prompt_embeds_mask"]
    if len(mask) == 1:
        return {"prompt_embeds": text["prompt_embeds"][mask][None]}
    return text


def test_a_lora_of_one_is_a_lora_of_the_others(models, qwen):
    transformer = models[EDIT_2511].empty_transformer()
    module = "transformer.transformer_blocks.0.attn.to_q"
    lora = {f"{module}.lora_A.weight": torch.ones(2, 32), f"{module}.lora_B.weight": torch.ones(32, 2)}
    for model in (*models.values(), qwen):
        assert read_lora(lora, model.family, model.empty_transformer()).keys() == lora.keys()
    flux = {name.replace(".attn.", ".").replace("transformer_blocks", "single_blocks"): lora[name] for name in lora}
    with pytest.raises(BadInput, match=r"a LoRA of Flux with .* a LoRA of Qwen-Image is expected"):
        read_lora(flux, models[EDIT_2511].family, transformer)


def test_2511_sees_its_controls_at_timestep_zero(models):
    """And its text and its image at their own: without controls both models predict the same."""
    transformers = {name: model.load_transformer(CPU, F32) for name, model in models.items()}
    batch = several(models[EDIT_2511], 9)

    def velocity(name: str, controls: Sequence[PackedLatents]) -> torch.Tensor:
        arguments = (transformers[name], batch.clean, controls, batch.texts[0].text, torch.tensor([0.7]), 1.0)
        with torch.no_grad():
            return models[name].family.predict(*arguments)

    torch.testing.assert_close(velocity(EDIT_2509, []), velocity(EDIT_2511, []), rtol=1e-5, atol=1e-5)
    ours, theirs = (velocity(name, batch.controls) for name in BOTH)
    assert ours.shape == theirs.shape == batch.clean.tokens.shape
    assert not torch.allclose(ours, theirs, atol=1e-3)
