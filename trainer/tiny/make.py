"""Makes the embedded models from nothing: `python -m trainer.tiny.make --out DIR`.

1. text: tokenizers, frozen random text encoders, schedules, and random weights for the rest;
2. vae: each family's VAE, by a training of its own;
3. transformer: by this project's own full fine-tune on `shapes.BASE_EDITS`.

The Qwen-Image-Edit with several control images has only a transformer of its own, which begins from the first one's.
The VAE of FLUX.2 [klein] is made from Flux's. Both learn `shapes.TWO_PICTURE_EDITS` besides.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..families.registry import find_variant
from .parts import FAMILIES, write_part, write_parts, write_parts_beside
from .requests import make_request
from .shapes import BASE_EDITS, TAUGHT_EDITS, TWO_PICTURE_EDITS, make_pairs, write_parquet

if TYPE_CHECKING:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from diffusers.models.modeling_utils import ModelMixin


SEED = 1
"""Seed of all weights and data."""


STAGES = ("text", "vae", "transformer")


PICTURES = 24_000
"""Images that the VAEs are trained on. This and the sizes and durations below are judgements."""


VAE_STEPS, VAE_DECODER_STEPS = 3200, 2000


VAE_BATCH = 8


PAIRS = 6_000


TRANSFORMER_STEPS = dict.fromkeys(FAMILIES, 4200)


EDITS = dict.fromkeys(FAMILIES, BASE_EDITS) | {
    "qwen-image-edit-plus": 2 * TWO_PICTURE_EDITS + BASE_EDITS,
    "flux2-klein": BASE_EDITS + TWO_PICTURE_EDITS,
}
"""Edits that each transformer learns, in turn."""


MADE_FROM = {"flux2-klein": "flux-kontext"}
"""Models whose VAE is made from another model's trained one."""


PROMPTS = dict.fromkeys(FAMILIES, ("make it red", "turn it into a star", "move it to the left")) | dict.fromkeys(
    ("qwen-image-edit-plus", "flux2-klein"),
    ("make it the color of picture 2", "turn it into the shape of picture 2", "make it red"),
)
"""Prompts of the samples, which edit the first pair's control images."""


TRAINING = {
    "batch_size": 32,
    "learning_rate": 1.5e-3,
    "use_lora": False,
    "sample_every": 500,
    "sample_width": 64,
    "sample_height": 64,
}


SETTINGS = {
    "seed": SEED,
    "lr_scheduler": "cosine",
    "warmup_steps": 100,
    "save_dtype": "fp16",
    "keep_checkpoints": 1,
    "cache_text_embeddings": True,
}


def make_text(family: str, folder: Path) -> None:
    """Write the folder with every part untrained, or begun from the model that shares its parts."""
    if shared := find_variant(f"tiny/{family}").shared_folder:
        write_parts_beside(folder.parent / shared, folder)
    else:
        write_parts(family, folder, SEED)


def make_vae(family: str, folder: Path) -> None:
    """Train the folder's VAE from random weights, measure its latents, and write it, unless another's is shared.

    It sees images of every edit, the taught ones too, since a VAE must encode any image. The taught edits are kept from
    the transformer alone.
    """
    import torch

    from .vae import flux_vae, qwen_vae, reconstruction_psnr, to_pixels, train_vae

    if find_variant(f"tiny/{family}").shared_folder:
        return
    torch.manual_seed(SEED)
    kinds = BASE_EDITS + 2 * TAUGHT_EDITS
    pairs = make_pairs(kinds, SEED, PICTURES // 2)
    pixels = to_pixels(image for pair in pairs for image in (pair.control, pair.target))
    if family in MADE_FROM:
        convert_vae(folder.parent / MADE_FROM[family], folder, pixels[:2000])
        return
    vae = {"flux-kontext": flux_vae, "qwen-image-edit": qwen_vae}[family]()
    for decoder_only, steps in ((False, VAE_STEPS), (True, VAE_DECODER_STEPS)):
        reports = train_vae(
            vae, pixels, steps=steps, batch_size=VAE_BATCH, seed=SEED + decoder_only, decoder_only=decoder_only
        )
        for report in reports:
            if report.step % 100 == 0:
                print(f"{family} vae step {report.step}/{steps}  {report.psnr:.2f} dB", flush=True)
    print(f"{family} vae: {reconstruction_psnr(vae, pixels[:500]):.2f} dB", flush=True)
    save_vae(vae, folder, pixels[:2000])


def convert_vae(trained: Path, folder: Path, pixels: torch.Tensor) -> None:
    """Make the VAE of FLUX.2 from Flux's in the folder `trained`, with the latent statistics of uint8 `pixels`
    [N, 3, H, W], and write it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from .vae import flux2_vae, measure_batch_norm, reconstruction_psnr

    vae = flux2_vae(AutoencoderKL.from_pretrained(trained, subfolder="vae", local_files_only=True))
    measure_batch_norm(vae, pixels)
    print(f"{folder.name} vae: {reconstruction_psnr(vae, pixels[:500]):.2f} dB", flush=True)
    write_part(vae, folder / "vae")


def save_vae(vae: AutoencoderKL | AutoencoderKLQwenImage, folder: Path, pixels: torch.Tensor) -> None:
    """Write a trained VAE with the scale and shift that give its latents of uint8 `pixels` [N, 3, H, W] mean 0 and
    variance 1."""
    import torch

    from .vae import drop_empty_taps, encode

    vae.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] (missing in the stubs)
    drop_empty_taps(vae.eval())
    latents = torch.cat([encode(vae, part) for part in pixels.split(100)]).transpose(0, 1).flatten(1)
    if hasattr(vae.config, "z_dim"):
        vae.register_to_config(
            latents_mean=[round(value, 4) for value in latents.mean(1).tolist()],
            latents_std=[round(value, 4) for value in latents.std(1).tolist()],
        )
    else:
        vae.register_to_config(
            shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
        )
    write_part(vae, folder / "vae")


def make_transformer(family: str, folder: Path, work: Path) -> None:
    """Train the folder's transformer on its edits by an ordinary full fine-tune, and write it.

    The run folder and its caches lie in `work`; an interrupted run is resumed.
    """
    import torch

    from ..config.request import parse_request
    from ..config.settings import RunSettings
    from ..data.dataset import open_dataset
    from ..events import Finished, Step, drain
    from ..models.edit_model import open_model
    from ..training.loop import train
    from .vae import single_frames

    parquet = work / f"{family}.parquet"
    if not parquet.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_parquet(parquet, EDITS[family], SEED, PAIRS)
    samples = [{"prompt": prompt} for prompt in PROMPTS[family]]
    params = {**TRAINING, "steps": TRANSFORMER_STEPS[family], "samples": samples}
    request = parse_request(make_request(f"tiny/{family}", parquet, params))
    model = open_model(f"tiny/{family}", folder)
    with single_frames():
        dataset = drain(open_dataset(parquet, request.training_params.columns))
        for event in train(request, dataset, model, RunSettings.model_validate(SETTINGS), run_dir=work / family):
            if isinstance(event, Step) and event.step % 50 == 0:
                print(f"{family} step {event.step}/{event.steps}  loss {event.loss:.4f}", flush=True)
            elif isinstance(event, Finished) and event.weights is not None:
                model = model.with_weights(event.weights)
    transformer = cast("ModelMixin", model.load_transformer("cpu", torch.float32))
    write_part(transformer, folder / "transformer")


def main(arguments: list[str] | None = None) -> None:
    """Make the models in a folder, in all stages or in one."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m trainer.tiny.make", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the models' folders and the runs are written")
    parser.add_argument("--stage", choices=STAGES, help="one stage only; the earlier ones must lie in OUT")
    parser.add_argument("--family", choices=FAMILIES, help="one model only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for family in [options.family] if options.family else FAMILIES:
        folder = options.out / family
        for stage in [options.stage] if options.stage else STAGES:
            if stage == "text":
                make_text(family, folder)
            elif stage == "vae":
                make_vae(family, folder)
            else:
                make_transformer(family, folder, options.out / "work")


if __name__ == "__main__":
    main()
