"""The description of a node, as far as the running ComfyUI knows its fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

CATEGORY = "model/training"
"""The menu of ComfyUI's own training nodes."""


def node_schema(**values: Any) -> io.Schema:
    """Describe a node of the pack by the fields of `io.Schema`; those that are newer than this ComfyUI have no
    effect."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in values.items() if name in known})
