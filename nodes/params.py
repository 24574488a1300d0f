"""Edit Training Params and Training Settings (advanced): widgets made from the trainer's fields."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config.request import TrainingParams
from ..trainer.config.settings import RunSettings
from .folders import NO_LORA, find_lora, lora_options, lora_state
from .host import readable_errors
from .schema import node_schema
from .types import EditParams, EditSettings
from .widgets import field_input, field_inputs

# Saved workflows store widget values by position: append, never insert or reorder.
PARAMS = (
    "batch_size",
    "cache_text_embeddings",
    "gradient_accumulation",
    "learning_rate",
    "lora_alpha",
    "lora_rank",
    "sample_every",
    "sample_height",
    "sample_width",
    "steps",
    "timestep_type",
    "use_lora",
)
SETTINGS = (
    "resolution",
    "control_resolution",
    "conditioning",
    "precision",
    "offload",
    "gradient_checkpointing",
    "compile",
    "lora_targets",
    "optimizer",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler",
    "warmup_steps",
    "caption_dropout",
    "training_guidance",
    "sample_steps",
    "sample_guidance",
    "sample_seed",
    "checkpoint_every",
    "keep_checkpoints",
    "save_dtype",
)
NEWER_SETTINGS = ("save_layout",)
"""Optional, because graphs saved before them lack them."""
MAIN_SETTINGS = (
    "resolution",
    "precision",
    "offload",
    "optimizer",
    "lr_scheduler",
    "warmup_steps",
    "sample_steps",
    "checkpoint_every",
    "init_lora",
)
"""Settings that stay in sight; the page folds the others, and those that are added later."""
SETTINGS_ELSEWHERE = ("seed", "images_root", "bad_rows", "allow_no_control", "cache_text_embeddings", "mask_column")
"""Widgets of Train Edit LoRA, Load Edit Dataset and Edit Training Params."""


LORA_FILES = {
    "init_lora": "LoRA to continue training from. none: start a new LoRA.",
    "sample_lora": "LoRA that is applied only while samples are drawn, such as one that needs few steps. none: no such "
    "LoRA.",
}
"""Settings that name a LoRA file, with the tooltips of their menus."""


def settings_inputs(settings: type[RunSettings]) -> list[io.Input]:
    """Widgets of the settings node. A setting that no list above names is appended as an optional widget."""
    listed = {*SETTINGS, *NEWER_SETTINGS, *SETTINGS_ELSEWHERE, "init_lora"}
    newest = ["init_lora", *(name for name in settings.model_fields if name not in listed)]
    return [
        *field_inputs(settings, SETTINGS),
        *field_inputs(settings, NEWER_SETTINGS, optional=True),
        *(_lora_input(name) if name in LORA_FILES else field_input(settings, name, optional=True) for name in newest),
    ]


def _lora_input(name: str) -> io.Input:
    return io.Combo.Input(name, options=lora_options(), default=NO_LORA, optional=True, tooltip=LORA_FILES[name])


class Params(io.ComfyNode):
    """The request's training parameters, without columns and samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerParams",
            display_name="Edit Training Params",
            search_aliases=["hyperparameters", "learning rate", "training steps", "LoRA rank"],
            description="The training parameters of a fine-tune request.",
            inputs=field_inputs(TrainingParams, PARAMS),
            advanced=(
                "cache_text_embeddings",
                "gradient_accumulation",
                "sample_height",
                "sample_width",
                "timestep_type",
                "use_lora",
            ),
            outputs=[EditParams.Output("params", tooltip="For Train Edit LoRA.")],
        )

    @classmethod
    def execute(cls, **params: object) -> io.NodeOutput:
        return io.NodeOutput(params)


class Settings(io.ComfyNode):
    """Run settings, which the request does not have."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = settings_inputs(RunSettings)
        return node_schema(
            node_id="EditTrainerSettings",
            display_name="Training Settings (advanced)",
            search_aliases=["optimizer", "precision", "checkpoints", "training options"],
            description="Settings that a fine-tune request does not have. Without this node the defaults apply.",
            inputs=inputs,
            advanced=tuple(widget.id for widget in inputs if widget.id not in MAIN_SETTINGS),
            outputs=[EditSettings.Output("settings", tooltip="For Train Edit LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(
        cls, init_lora: str | None = NO_LORA, sample_lora: str | None = NO_LORA, **others: object
    ) -> str | float:
        states = [lora_state(name) for name in (init_lora, sample_lora)]
        return float("nan") if float in map(type, states) else " ".join(map(str, states))

    @classmethod
    @readable_errors()
    def execute(cls, **settings: Any) -> io.NodeOutput:
        paths = {name: find_lora(settings.get(name, NO_LORA)) for name in LORA_FILES}
        return io.NodeOutput(settings | {name: str(path) if path else "" for name, path in paths.items()})
