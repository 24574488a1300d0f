"""Runs of the embedded models on the card by the command line."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.tiny.shapes import TAUGHT_EDITS, write_parquet


def write_request(folder: Path, base_model: str, steps: int, batch_size: int = 2) -> Path:
    """Write four pairs of an edit and a request that trains on them without samples; its file."""
    request = {
        "resource": str(write_parquet(folder / "pairs.parquet", TAUGHT_EDITS[:1], seed=0, count=4)),
        "base_model": base_model,
        "script_type": "image_editing",
        "training_params": {
            "caption_column": "caption",
            "control_image_column": "control",
            "image_column": "target",
            "batch_size": batch_size,
            "steps": steps,
            "samples": [],
        },
    }
    file = folder / "request.json"
    file.write_text(json.dumps(request), encoding="utf-8")
    return file


def losses(run: Path) -> list[float]:
    """The losses of a run's log, in order."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]
