"""The making of the embedded models, from nothing: `python -m trainer.tiny.make --out DIR`.

1. text: tokenizers, frozen random text encoders, schedules, and random weights for the rest;
2. vae: each family's VAE, by its own short training;
3. transformer: by this project's own full fine-tune on `shapes.BASE_EDITS`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from .parts import FAMILIES, write_parts
from .shapes import BASE_EDITS, TAUGHT_EDITS, make_pairs, write_parquet

SEED = 1
STAGES = ("text", "vae", "transformer")
PICTURES = 24_000
VAE_STEPS = {"flux-kontext": 4000, "qwen-image-edit": 3500}
VAE_BATCH = 8
PAIRS = 12_000


def make_text(family: str, folder: Path) -> None:
    """Write the folder with every part, untrained."""
    write_parts(family, folder, SEED)


def make_vae(family: str, folder: Path, steps: int | None = None) -> None:
    """Train the folder's VAE from random weights, measure its latents, and write it.

    It sees pictures of every edit, the taught ones too: a VAE is to carry any picture. Unseen edits are unseen by
    the transformer.
    """
    from .vae import flux_vae, qwen_vae, reconstruction_psnr, to_pixels, train_vae

    vae = {"flux-kontext": flux_vae, "qwen-image-edit": qwen_vae}[family]()
    pairs = make_pairs(BASE_EDITS + TAUGHT_EDITS, SEED, PICTURES // 2)
    pixels = to_pixels(image for pair in pairs for image in (pair.control, pair.target))
    steps = steps or VAE_STEPS[family]
    for report in train_vae(vae, pixels, steps=steps, batch_size=VAE_BATCH, seed=SEED):
        if report.step % 100 == 0:
            print(f"{family} vae step {report.step}/{steps}  {report.psnr:.2f} dB", flush=True)
    save_vae(vae, folder, pixels[:2000])
    print(f"{family} vae: {reconstruction_psnr(vae, pixels[:500]):.2f} dB", flush=True)


def save_vae(vae: object, folder: Path, pixels: object) -> None:
    """Write a trained VAE with the statistics by which its latents of `pixels` have mean 0 and variance 1."""
    import torch

    from .vae import drop_empty_taps, encode

    vae = vae.to(memory_format=torch.contiguous_format).eval()
    drop_empty_taps(vae)
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
    vae.half().save_pretrained(folder / "vae")
    vae.float()
