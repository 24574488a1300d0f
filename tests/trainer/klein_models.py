"""A small FLUX.2 [klein] in a folder, with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family
from trainer.tiny.parts import write_parts

KLEIN_4B, KLEIN_9B = "black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-base-9B"


def klein_model(folder: Path, base_model: str = KLEIN_4B, policy: str = "diffusers") -> EditModel:
    """The base model in `folder`, which is written unless it is there."""
    if not folder.exists():
        write_parts("flux2-klein", folder, seed=1)
    return open_model(base_model, folder, policy)


def small(family: Family, side: int) -> Family:
    """The family for images of side x side pixels."""
    variant = replace(family.variant, resolution=side, max_sample_resolution=side)
    return type(family)(variant, family.vae_config)
