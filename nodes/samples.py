"""Sample Prompt: one picture that is drawn again and again while training goes on."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..trainer.config.request import SamplePrompt
from .folders import keep_control
from .host import readable_errors
from .pictures import to_pictures
from .types import EditSamples
from .widgets import field_input


class Sample(io.ComfyNode):
    """Adds one sample prompt to a chain of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditTrainerSample",
            display_name="Sample Prompt",
            category="edit trainer",
            description="An edit that is drawn during the run, to show progress. Chain several through samples. "
            "Without an image and an address, the dataset's own first control image is edited.",
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip=SamplePrompt.model_fields["prompt"].description),
                field_input(SamplePrompt, "ctrl_img_url"),
                io.Image.Input("control_image", optional=True, tooltip="The control image; wins over the address."),
                EditSamples.Input("samples", optional=True, tooltip="Sample prompts that come before this one."),
            ],
            outputs=[EditSamples.Output("samples", tooltip="For Train Edit LoRA, or the next Sample Prompt.")],
        )

    @classmethod
    @readable_errors()
    def execute(
        cls,
        prompt: str,
        ctrl_img_url: str,
        control_image: torch.Tensor | None = None,
        samples: tuple[SamplePrompt, ...] = (),
    ) -> io.NodeOutput:
        if control_image is not None:
            ctrl_img_url = keep_control(to_pictures(control_image)[0]).as_posix()
        return io.NodeOutput((*samples, SamplePrompt(prompt=prompt, ctrl_img_url=ctrl_img_url)))
