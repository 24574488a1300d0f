"""Load Edit Base Model: which weights are trained."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..trainer.errors import BadInput
from ..trainer.schema import BASE_MODELS
from .host import readable_errors
from .types import EditModel

AUTO = "auto"


class BaseModel(io.ComfyNode):
    """From a name to EDIT_MODEL. Nothing is loaded before it is used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditTrainerBaseModel",
            display_name="Load Edit Base Model",
            category="edit trainer",
            description="Chooses the model to train. The tiny ones are part of the pack and run on any machine.",
            inputs=[
                io.Combo.Input("base_model", options=list(BASE_MODELS), tooltip="The model to train."),
                io.Combo.Input(
                    "transformer",
                    options=[AUTO, *folder_paths.get_filename_list("diffusion_models")],
                    default=AUTO,
                    tooltip="The transformer's weights; auto: the base model's own, from the Hugging Face hub. "
                    "Single files cannot be used yet.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Cannot be used yet; leave it unconnected."),
                io.Vae.Input("vae", optional=True, tooltip="Cannot be used yet; leave it unconnected."),
            ],
            outputs=[EditModel.Output("model", tooltip="For Train Edit LoRA or Edit Image.")],
        )

    @classmethod
    @readable_errors()
    def execute(cls, base_model: str, transformer: str, clip: object = None, vae: object = None) -> io.NodeOutput:
        from ..trainer.models import open_model

        faults = [f"{name}: cannot be used yet; disconnect it" for name, port in (("clip", clip), ("vae", vae)) if port]
        if transformer != AUTO:
            faults.append(f'transformer: single files such as "{transformer}" cannot be used yet; choose "{AUTO}"')
        if faults:
            raise BadInput("\n".join(faults))
        return io.NodeOutput(open_model(base_model))
