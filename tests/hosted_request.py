"""The hosted service's request `multi_image_editing`, with every field as published, and the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.tiny.shapes import make_pair, write_parquet

HOSTED: dict[str, Any] = {
    "resource": "main/your-dataset.parquet",
    "base_model": "tiny/qwen-image-edit-plus",
    "script_type": "multi_image_editing",
    "is_public": False,
    "oxen_model_path": None,
    "training_params": {
        "batch_size": 1,
        "caption_column": "caption",
        "control_image_columns": ["control", "control_2"],
        "gradient_accumulation": 1,
        "image_column": "target",
        "learning_rate": 0.0002,
        "lora_alpha": 16,
        "lora_rank": 16,
        "sample_every": 200,
        "sample_height": 1024,
        "sample_width": 1024,
        "samples": [
            {"ctrl_img_url": ["one.png", "two.png"], "prompt": "replace the right side with picture 2"},
            {"ctrl_img_url": "one.png", "prompt": "make it red"},
        ],
        "steps": 3000,
        "timestep_type": "weighted",
        "use_lora": True,
    },
}


def write_files(folder: Path) -> None:
    """Write the request's dataset and the control images of its samples."""
    write_parquet(folder / "your-dataset.parquet", ["join", "recolor"], seed=1, count=6)
    pair = make_pair("join", seed=2, index=0)
    for name, image in zip(("one", "two"), pair.controls, strict=True):
        image.save(folder / f"{name}.png")
