"""Load Edit Base Model, the node that chooses the weights to train."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..trainer.families.registry import base_model_names, find_family
from .host import readable_errors
from .kept_model import KeptModel
from .model_files import AUTO, check_connected, open_choice, present_base_model, state_of, transformer_options
from .schema import node_schema
from .types import EditModel

if TYPE_CHECKING:
    from comfy.sd import CLIP, VAE


class BaseModel(io.ComfyNode):
    """Opens a base model as EDIT_MODEL; weights are loaded when they are used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerBaseModel",
            display_name="Load Edit Base Model",
            search_aliases=["train model", "base model for training", "Kontext", "Qwen-Image-Edit"],
            description="Chooses the model to train. The tiny ones are part of the pack and run on any machine.",
            inputs=[
                io.Combo.Input(
                    "base_model",
                    options=base_model_names(),
                    default=present_base_model(),
                    tooltip="The model to train.",
                ),
                io.Combo.Input(
                    "transformer",
                    options=transformer_options(),
                    default=AUTO,
                    tooltip="The transformer's weights: a file of models/diffusion_models, or a folder of "
                    "models/diffusers. auto: a folder of this model, else the Hugging Face cache, else (with clip and "
                    "vae) a file recognized as this model, else the Hugging Face hub.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of your edit graph: the LoRA is trained on what it will see there. "
                    "Connect clip and vae, or neither.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of your edit graph. Connect both, or neither."),
            ],
            outputs=[EditModel.Output("model", tooltip="For Train Edit LoRA, Edit Image or Edit Model (as MODEL).")],
        )

    @classmethod
    def fingerprint_inputs(cls, transformer: str | None = None, **others: object) -> str | float:
        if transformer is None:
            return float("nan")
        try:
            return state_of(transformer)
        except OSError:
            return "not there"

    @classmethod
    @readable_errors()
    def execute(
        cls, base_model: str, transformer: str, clip: CLIP | None = None, vae: VAE | None = None
    ) -> io.NodeOutput:
        connected = check_connected(base_model, transformer, clip is not None, vae is not None)
        ports = None
        if connected:
            from .ports import connect

            ports = connect(find_family(base_model), clip, vae)
        model = open_choice(base_model, transformer, connected, ports)
        return io.NodeOutput(replace(model, kept=KeptModel()))
