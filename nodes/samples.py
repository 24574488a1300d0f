"""Sample Prompt: an edit that training repeats at intervals to show progress."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..trainer.config.samples import SamplePrompt, sample_prompt
from ..trainer.config.validation import decode_json
from ..trainer.errors import BadInput
from .folders import save_control
from .host import readable_errors
from .pil_images import to_pil
from .schema import node_schema
from .types import EditSamples
from .widgets import field_input


class Sample(io.ComfyNode):
    """Adds one sample prompt to a chain of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerSample",
            display_name="Sample Prompt",
            search_aliases=["validation prompt", "training preview"],
            description="An edit made at intervals during the run to show progress. Chain several through samples. "
            "Without an image and a URL, the dataset's first control image is edited.",
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip=SamplePrompt.model_fields["prompt"].description),
                field_input(SamplePrompt, "ctrl_img_url"),
                io.Image.Input("control_image", optional=True, tooltip="Control image; takes precedence over the URL."),
                EditSamples.Input("samples", optional=True, tooltip="Sample prompts before this one."),
                *(
                    io.Image.Input(
                        f"control_image_{number}",
                        optional=True,
                        tooltip=f"Control image {number}, for models that take several.",
                    )
                    for number in (2, 3)
                ),
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
        control_image_2: torch.Tensor | None = None,
        control_image_3: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        images = [image for image in (control_image, control_image_2, control_image_3) if image is not None]
        urls = [save_control(to_pil(image)[0]).as_posix() for image in images]
        if control_image is None:
            urls = [*_urls(ctrl_img_url), *urls]
        return io.NodeOutput((*samples, sample_prompt(prompt, urls)))


def _urls(text: str) -> list[str]:
    """URLs and paths of a text: one, or a JSON list of several. Raises BadInput."""
    if not text.lstrip().startswith("["):
        return [text] if text else []
    urls = decode_json(text, "ctrl_img_url")
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise BadInput("ctrl_img_url: is not a list of texts; write one URL or path, or several as a JSON list.")
    return [url for url in urls if url]
