"""Requests to train on the parquets of `shapes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families.registry import find_family


def make_request(base_model: str, parquet: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request in decoded JSON, for both control columns if the base model takes several images."""
    several = find_family(base_model).max_controls > 1
    columns = {"control_image_columns": ["control", "control_2"]} if several else {"control_image_column": "control"}
    return {
        "resource": parquet.as_posix(),
        "base_model": base_model,
        "script_type": "multi_image_editing" if several else "image_editing",
        "training_params": {"caption_column": "caption", **columns, "image_column": "target", **params},
    }
