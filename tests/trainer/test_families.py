"""Batches, LoRA targets, latent normalization and the handle on a model's files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from trainer.data.resize import Size
from trainer.errors import BadInput, RunFailed
from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family
from trainer.models.flux2_klein import Flux2Klein
from trainer.models.flux_kontext import FluxKontext
from trainer.models.qwen_image_edit import QwenImageEdit
from trainer.models.types import TextConditioning

from .klein_models import KLEIN_4B, KLEIN_9B

CPU, F32 = "cpu", torch.float32
CAPTIONS = ["red", "turn the shape into a much larger circle"]


def conditionings(model: EditModel, generator: torch.Generator) -> list[TextConditioning]:
    encoder = model.load_text_encoder(CPU, F32)
    return [encoder.encode(caption, [torch.rand(1, 3, 64, 64, generator=generator)]) for caption in CAPTIONS]


def latent_shape(family: Family, width: int, height: int) -> tuple[int, int, int]:
    """Shape of the normalized latents of an image of this size: channels, rows, columns."""
    return 16 if family.latent_step == 8 else 64, height // family.latent_step, width // family.latent_step


def loss_and_gradient(
    family: Family, transformer: torch.nn.Module, rows: slice, texts: list[TextConditioning], latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """MSE of the velocity for some rows of a batch, and the gradient of all weights, flat."""
    noisy, control, target = (family.pack(part[rows]) for part in latents)
    sigma = torch.tensor([0.3, 0.8])[rows]
    velocity = family.predict(transformer, noisy, [control], family.collate_text(texts[rows]), sigma, 1.0)
    loss = torch.nn.functional.mse_loss(velocity, target.tokens)
    gradients = torch.autograd.grad(loss, list(transformer.parameters()), allow_unused=True)
    return loss, torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def test_a_batch_gives_the_mean_of_its_examples(model: EditModel):
    generator = torch.Generator().manual_seed(3)
    texts = conditionings(model, generator)
    latents = torch.randn(3, 2, *latent_shape(model.family, 64, 64), generator=generator)
    transformer = model.load_transformer(CPU, F32).requires_grad_(True)
    arguments = (model.family, transformer)
    singles = [loss_and_gradient(*arguments, slice(row, row + 1), texts, latents) for row in (0, 1)]
    loss, gradient = loss_and_gradient(*arguments, slice(0, 2), texts, latents)
    mean_loss, mean_gradient = ((first + second) / 2 for first, second in zip(*singles, strict=True))
    assert abs(loss - mean_loss) <= 1e-5 * mean_loss
    assert torch.norm(gradient - mean_gradient) <= 1e-5 * torch.norm(mean_gradient)


def test_only_a_padded_batch_has_a_mask(qwen: EditModel):
    short, long = conditionings(qwen, torch.Generator().manual_seed(3))
    assert set(qwen.family.collate_text([long, long])) == {"prompt_embeds"}
    batch = qwen.family.collate_text([short, long])
    lengths = [text["prompt_embeds"].shape[1] for text in (short, long)]
    assert batch["prompt_embeds_mask"].dtype == torch.bool
    assert batch["prompt_embeds_mask"].sum(dim=1).tolist() == lengths
    assert torch.equal(batch["prompt_embeds"][0, : lengths[0]], short["prompt_embeds"][0])


def test_packing_and_normalization_are_undone(model: EditModel):
    latents = torch.randn(2, *latent_shape(model.family, 80, 48), generator=torch.Generator().manual_seed(0))
    packed = model.family.pack(latents)
    assert packed.grid == (3, 5) and packed.tokens.shape == (2, 15, model.empty_transformer().config["in_channels"])
    assert torch.equal(model.family.unpack(packed), latents)
    torch.testing.assert_close(model.family.denormalize(model.family.normalize(latents)), latents)


def matched(family: Family, which: str, transformer: torch.nn.Module) -> set[str]:
    pattern = re.compile(family.lora_targets(which, transformer))
    return {name for name, _ in transformer.named_modules() if pattern.fullmatch(name)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "base", "counts"),
    [
        (FluxKontext, "black-forest-labs/FLUX.1-Kontext-dev", (19 * 8 + 38 * 3, 19 * 12 + 38 * 5, 19 * 14 + 38 * 6)),
        (QwenImageEdit, "Qwen/Qwen-Image-Edit", (60 * 8 - 2, 60 * 12 - 4, 60 * 14 - 4)),
        (Flux2Klein, KLEIN_4B, (5 * 8 + 20 * 2, 5 * 12 + 20 * 2, 5 * 12 + 20 * 2)),
        (Flux2Klein, KLEIN_9B, (8 * 8 + 24 * 2, 8 * 12 + 24 * 2, 8 * 12 + 24 * 2)),
    ],
)
def test_lora_targets_of_the_full_size_models(family, base, counts):
    transformer, policy = open_model(base).empty_transformer(), family(family.info.variant(base), {})
    sets = [matched(policy, which, transformer) for which in ("attention", "attention+mlp", "all-linear")]
    assert tuple(map(len, sets)) == counts
    assert sets[0] < sets[1] <= sets[2]
    assert all(isinstance(transformer.get_submodule(name), torch.nn.Linear) for name in sets[2])


def test_all_linear_targets_are_the_layers_of_the_blocks_that_can_learn(model: EditModel):
    """A layer learns when the velocity has a gradient towards its weight."""
    generator = torch.Generator().manual_seed(3)
    transformer = model.load_transformer(CPU, F32).requires_grad_(True)
    latents = torch.randn(3, 2, *latent_shape(model.family, 64, 64), generator=generator)
    text = conditionings(model, generator)[0]
    noisy, control, target = (model.family.pack(part[:1]) for part in latents)
    velocity = model.family.predict(transformer, noisy, [control], text, torch.tensor([0.5]), 1.0)
    torch.nn.functional.mse_loss(velocity, target.tokens).backward()
    learning = {
        name
        for name, module in transformer.named_modules()
        if re.match(r"(single_)?transformer_blocks\.", name)
        and isinstance(module, torch.nn.Linear)
        and module.weight.grad is not None
        and module.weight.grad.abs().max() > 0
    }
    assert matched(model.family, "all-linear", transformer) == learning


def test_the_fingerprint_follows_the_content_not_the_place(model: EditModel, tmp_path: Path):
    copy = open_model(model.base_model, Path(shutil.copytree(model.folder, tmp_path / "copy")))
    for part in ("transformer", "vae", "text"):
        assert copy.fingerprint(part) == model.fingerprint(part)
    assert copy.load_codec(CPU, F32).fingerprint == model.fingerprint("vae")
    assert copy.load_text_encoder(CPU, F32).fingerprint == model.fingerprint("text")
    weights = tmp_path / "copy" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert copy.fingerprint("vae") != model.fingerprint("vae")
    assert copy.fingerprint("text") == model.fingerprint("text")


def test_models_that_cannot_be_opened_say_why(kontext: EditModel, tmp_path: Path):
    with pytest.raises(BadInput, match=r"tiny/nothing.* is not known"):
        open_model("tiny/nothing")
    with pytest.raises(BadInput, match=r"is not a model in diffusers\' layout: it has no model_index\.json"):
        open_model("tiny/flux-kontext", tmp_path)
    with pytest.raises(BadInput, match='conditioning: "comfyui" needs the CLIP and VAE'):
        open_model("tiny/flux-kontext", kontext.folder, policy="comfyui")

    folder = Path(shutil.copytree(kontext.folder, tmp_path / "copy"))
    broken = open_model("tiny/flux-kontext", folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"The transformer of tiny/flux-kontext in .* cannot be loaded: "):
        broken.load_transformer(CPU, F32)
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BadInput, match="text_encoder_2 is missing; the model is incomplete"):
        broken.load_text_encoder(CPU, F32)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"The VAE of tiny/flux-kontext in .* cannot be loaded: "):
        broken.load_codec(CPU, F32)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(BadInput, match=r"config\.json cannot be loaded: "):
        open_model("tiny/flux-kontext", folder).load_codec(CPU, F32)


def test_a_model_that_cannot_be_fetched_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match="hf download Qwen/Qwen-Image-Edit"):
        open_model("Qwen/Qwen-Image-Edit").fingerprint("transformer")


def test_sizes_and_registry_need_no_torch():
    code = (
        "import sys, trainer.data.resize, trainer.models.family; assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_prediction_covers_the_target_only(model: EditModel):
    """Target and control may differ in size."""
    text = conditionings(model, torch.Generator().manual_seed(3))[0]
    noisy, control = (
        model.family.pack(torch.randn(1, *latent_shape(model.family, *size))) for size in (Size(80, 48), Size(32, 64))
    )
    transformer = model.load_transformer(CPU, F32)
    with torch.no_grad():
        velocity = model.family.predict(transformer, noisy, [control], text, torch.tensor([0.5]), 1.0)
    assert velocity.shape == noisy.tokens.shape
