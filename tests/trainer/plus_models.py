"""The small Qwen-Image-Edit as Qwen-Image-Edit-2509 and -2511: folders of the later pipeline with the same weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family

EDIT_2509, EDIT_2511 = "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"
SMALL_SIDE = 128
"""Square root of the area of the small models' images; their text encoders see 48 x 48 pixels."""


def plus_model(base_model: str, qwen: EditModel, folder: Path) -> EditModel:
    """The base model in `folder`, with the parts of a small Qwen-Image-Edit."""
    shutil.copytree(qwen.folder, folder)
    _change(folder / "model_index.json", _class_name="QwenImageEditPlusPipeline")
    if base_model == EDIT_2511:
        _change(folder / "transformer" / "config.json", zero_cond_t=True)
    return open_model(base_model, folder)


def small(family: Family, side: int = SMALL_SIDE) -> Family:
    """The family for images of side x side pixels."""
    variant = replace(family.variant, resolution=side, max_sample_resolution=side, text_length=32)
    return type(family)(variant, family.vae_config)


def _change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")
