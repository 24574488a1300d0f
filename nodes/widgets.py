"""Node inputs made from the trainer's pydantic fields: name, type, default, bounds and tooltip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from comfy_api.latest import io
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ..trainer.config.columns import COLUMN_FIELDS, Columns

MAX_INT = 2**53 - 1
"""Largest integer that the page's doubles represent exactly."""
MAX_FLOAT = 1e6
"""Bound of float widgets without one of their own; a judgement: ComfyUI requires one."""
STEPS = {"learning_rate": 1e-6, "weight_decay": 1e-4, "caption_dropout": 0.01, "ema_decay": 0.001}
"""Steps of float widgets for which 0.1 is too coarse; the page rounds typed values to a hundredth of the step."""
MENU = {"widgetType": "EDIT_TRAINER_CHOICE"}
"""Makes the page add a menu to a text input."""
MASK_COLUMN = "mask_column"
"""Input of a dataset node that names the column of masks."""
CHOICES = {"resource", "caption_column", "control_image_column", "image_column", MASK_COLUMN}
"""Text inputs with such a menu."""
MORE_CONTROL_COLUMNS = ("control_image_column_2", "control_image_column_3")
"""Inputs of a dataset node that name the columns of further control images."""
CONTROL_COLUMN_FIELDS = ("control_image_column", *MORE_CONTROL_COLUMNS)
"""All of its inputs that name a column of control images, in the order in which the model sees them."""
OPTIONAL_COLUMNS = (*MORE_CONTROL_COLUMNS, MASK_COLUMN)
"""Those of its inputs that may stay empty."""
COLUMN_INPUTS = (*COLUMN_FIELDS, *OPTIONAL_COLUMNS)
"""All of its inputs that name a column."""


def field_input(model: type[BaseModel], name: str, optional: bool = False) -> io.Input:
    """Make the widget of a field; `optional` if it is newer than its node, as saved prompts then lack it."""
    field = model.model_fields[name]
    default = "" if field.default is PydanticUndefined else field.default
    common: dict[str, Any] = {"id": name, "default": default, "tooltip": field.description, "optional": optional}
    if get_origin(field.annotation) is Literal:
        return io.Combo.Input(options=list(get_args(field.annotation)), **common)
    if field.annotation is bool:
        return io.Boolean.Input(**common)
    if field.annotation is str:
        menu = {"extra_dict": MENU} if name in CHOICES else {}
        return io.String.Input(**menu, **common)
    bounds = {type(bound): bound for bound in field.metadata}
    if field.annotation is int:
        top = min(bounds[Le].le if Le in bounds else MAX_INT, MAX_INT)
        # ComfyUI's page randomizes widgets named seed after every run by default.
        extra = {"control_after_generate": False} if name == "seed" else {}
        return io.Int.Input(min=bounds[Ge].ge, max=top, step=1, **extra, **common)
    step = STEPS.get(name, 0.1)
    bottom = step / 100 if Gt in bounds else bounds[Ge].ge
    top = float(bounds[Le].le) if Le in bounds else MAX_FLOAT
    return io.Float.Input(min=float(bottom), max=top, step=step, round=step / 100, **common)


def more_control_inputs() -> list[io.Input]:
    """Make the inputs that name the columns of further control images."""
    return [
        io.String.Input(
            name,
            default="",
            optional=True,
            tooltip=f"The parquet column that holds control image {number}, for models that take several. Empty: none.",
            extra_dict=MENU,
        )
        for number, name in enumerate(MORE_CONTROL_COLUMNS, 2)
    ]


def columns_of(fields: Mapping[str, Any]) -> Columns:
    """Columns of a dataset node's inputs; those of further control images and of masks may be empty or missing."""
    controls = [name for field in CONTROL_COLUMN_FIELDS if (name := fields.get(field))]
    return Columns(fields["caption_column"], tuple(controls), fields["image_column"], fields.get(MASK_COLUMN) or "")


def field_inputs(model: type[BaseModel], names: tuple[str, ...], optional: bool = False) -> list[io.Input]:
    """Make the widgets of several fields, in this order."""
    return [field_input(model, name, optional) for name in names]
