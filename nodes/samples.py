"""Sample Prompt: an edit that training repeats at intervals to show progress."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..trainer.config.request import SamplePrompt
from .folders import save_control
from .host import readable_errors
from .pil_images import to_pil
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
            description="An edit made at intervals during the run to show progress. Chain several through samples. "
            "Without an image and a URL, the dataset's first control image is edited.",
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip=SamplePrompt.model_fields["prompt"].description),
                field_input(SamplePrompt, "ctrl_img_url"),
                io.Image.Input("control_image", optional=True, tooltip="Control image; takes precedence over the URL."),
                EditSamples.Input("samples", optional=True, tooltip="Sample prompts before this one."),
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
            ctrl_img_url = save_control(to_pil(control_image)[0]).as_posix()
        return io.NodeOutput((*samples, SamplePrompt(prompt=prompt, ctrl_img_url=ctrl_img_url)))
