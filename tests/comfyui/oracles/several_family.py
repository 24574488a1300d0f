"""A made-up model family that takes three control images: the tiny Qwen-Image-Edit, which the pack's own nodes then
offer until it is taken away again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from .trainer_access import nodes, trainer

NAME = "tiny/several"


class SeveralFamily(io.ComfyNode):
    """Makes the family known, or unknown again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="OracleSeveralFamily", inputs=[io.Boolean.Input("known")], is_output_node=True)

    @classmethod
    def execute(cls, known: bool) -> io.NodeOutput:
        registered = trainer("families.registry").FAMILIES
        registered[:] = [info for info in registered if info.name != "several"]
        if known:
            registered.append(made_up())
        return io.NodeOutput(ui=ui.PreviewText(", ".join(info.name for info in registered)))


def made_up() -> Any:
    """The family's record; its class is made on the way."""
    nodes("model_files").import_models()
    qwen = trainer("families.records").QWEN_IMAGE_EDIT
    record = replace(
        qwen,
        name="several",
        title="Several",
        implementations=dict.fromkeys(("diffusers", "comfyui"), f"{__name__}.Several"),
        variants=tuple(replace(variant, name=NAME) for variant in qwen.variants if variant.embedded),
        max_controls=3,
    )

    class Several(trainer("models.qwen_image_edit").QwenImageEdit):
        info = record

        def load_text_encoder(self, *arguments: Any, **options: Any) -> Any:
            encoder = super().load_text_encoder(*arguments, **options)
            one = encoder.encode

            def encode(caption: str, controls: Any) -> dict[str, torch.Tensor]:
                parts = [one(caption, [control])["prompt_embeds"] for control in controls]
                return {"prompt_embeds": torch.cat(parts, dim=1)}

            encoder.encode = encode
            return encoder

    globals()["Several"] = Several
    return record
