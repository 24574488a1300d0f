"""The description of a node, as far as the running ComfyUI knows its fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

CATEGORY = "model/training"
"""The menu of ComfyUI's own training nodes."""


def node_schema(inputs: list[io.Input], advanced: tuple[str, ...] = (), **values: Any) -> io.Schema:
    """Describe a node of the pack by the fields of `io.Schema`; those that are newer than this ComfyUI have no
    effect. `advanced` names the inputs that the page folds: few people touch them."""
    known = {field.name for field in fields(io.Schema)}
    for widget in inputs:
        if widget.id in advanced:
            widget.advanced = True  # not an argument of the constructor, which older ComfyUIs do not have
    values = {name: value for name, value in values.items() if name in known}
    return io.Schema(category=CATEGORY, inputs=inputs, **values)
