"""Edit Model (as MODEL): a base model, or a trained one, for ComfyUI's own samplers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.sd
from comfy_api.latest import io

from ..trainer.errors import BadInput
from .host import readable_errors
from .kept_model import kept_of, make_host_room
from .schema import node_schema
from .types import EditModel

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

    from ..trainer.models.edit_model import EditModel as Model

    LoraTensors = Mapping[str, torch.Tensor]


class NativeModel(io.ComfyNode):
    """Hands out ComfyUI's own MODEL of an EDIT_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerNativeModel",
            display_name="Edit Model (as MODEL)",
            search_aliases=["convert to MODEL", "load diffusion model", "KSampler", "native model", "test LoRA"],
            description="Opens the same transformer as ComfyUI's own MODEL, with the trained LoRA, for KSampler and "
            "every other node that takes one.",
            inputs=[
                EditModel.Input("model", tooltip="A base model, or the trained model from Train Edit LoRA."),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Strength of the LoRA: 0 is off, 1 is as trained.",
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="A LoRA; it replaces the model's own."),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="What Load Diffusion Model and Load LoRA Model give for the same files."
                )
            ],
        )

    @classmethod
    @readable_errors()
    def execute(cls, model: Model, lora_strength: float, lora: dict[str, torch.Tensor] | None = None) -> io.NodeOutput:
        base = kept_of(model).native.open(model, make_host_room)
        worn = lora or model.adapter
        if worn is None or lora_strength == 0:
            return io.NodeOutput(base)
        return io.NodeOutput(_with_lora(base, worn, lora_strength, model.base_model))


def _with_lora(base: ModelPatcher, lora: Path | LoraTensors, strength: float, base_model: str) -> ModelPatcher:
    """Apply a LoRA as Load LoRA Model does. Raises BadInput for one of which no part fits, and for an unreadable
    file."""
    from ..trainer.tensors import read_weights

    tensors = read_weights(lora, "LoRA file") if isinstance(lora, Path) else dict(lora)
    patched, _ = comfy.sd.load_lora_for_models(base, None, tensors, strength, 0)
    if not patched.patches:
        raise BadInput(f"lora: none of its {len(tensors)} tensors fits {base_model}; it belongs to another model.")
    return patched
