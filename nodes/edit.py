"""Edit Image: inference with a base model or a trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..trainer.errors import BadInput
from ..trainer.families.registry import FAMILIES
from .folders import NO_LORA, find_lora, lora_options, lora_state
from .host import NodeDisplay, borrowed_device, follow, readable_errors
from .kept_model import kept_of
from .notes import OUTPUT, Note, note
from .pil_images import to_pil, to_tensor
from .schema import node_schema
from .types import EditModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from ..trainer.data.resize import Size
    from ..trainer.models.edit_model import EditModel as Model


MUCH_SMALLER = 2
"""Image area over edit area from which the node says so; a judgement: rounding to a bucket is less."""


class EditImage(io.ComfyNode):
    """Edits images by a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        negative = ", ".join(info.title for info in FAMILIES if info.uses_negative_prompt)
        return node_schema(
            node_id="EditTrainerEditImage",
            display_name="Edit Image",
            search_aliases=["image editing", "instruct edit", "test LoRA"],
            description="Edits an image, or several together, with the sampler that training uses for its samples.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                EditModel.Input("model", tooltip="A base model, or the trained model from Train Edit LoRA."),
                io.Image.Input("image", tooltip="The image to edit."),
                io.String.Input("prompt", multiline=True, tooltip="The edit to make."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    tooltip=f"What to avoid. Only for {negative}, with a guidance above 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the initial noise.",
                ),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Sampler steps. 0: the model's own."),
                io.Float.Input(
                    "guidance", default=0.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale. 0: the model's own."
                ),
                io.Int.Input(
                    "width", default=0, min=0, max=16384, tooltip="Width in pixels. 0: follows from the image."
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, tooltip="Height in pixels. 0: follows from the image."
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Strength of the LoRA: 0 is off, 1 is as trained.",
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="A LoRA; it replaces the model's own."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_options(),
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA file; it replaces the model's own. Cannot be combined with lora.",
                ),
                *(
                    io.Image.Input(
                        f"image_{number}", optional=True, tooltip=f"Image {number}, for models that take several."
                    )
                    for number in (2, 3)
                ),
            ],
            advanced=("negative_prompt", "width", "height"),
            outputs=[io.Image.Output("image", tooltip="The edited image.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = NO_LORA, **others: object) -> str | float:
        return lora_state(lora_name)

    @classmethod
    @readable_errors()
    def execute(
        cls,
        model: Model,
        image: torch.Tensor,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        lora_strength: float,
        lora: dict[str, torch.Tensor] | None = None,
        lora_name: str = NO_LORA,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        from ..trainer.inference import edit

        kept, model = kept_of(model), replace(model, kept=None)
        if adapter := _chosen_lora(lora_name, lora) or model.adapter:
            model = model.with_adapter(adapter, lora_strength)
        display = NodeDisplay(cls.hidden.unique_id)
        batch = _batch(image=image, image_2=image_2, image_3=image_3)
        edited = []
        with borrowed_device(kept.patcher) as device:
            for pictures in batch:
                size = _size(pictures[model.family.sizing_control], width, height)
                options = {"negative_prompt": negative_prompt, "seed": seed, "steps": steps, "guidance": guidance}
                events = edit(model, pictures, prompt, **options, size=size, device=device, session=kept.session)
                edited.append(follow(events, display.show))
        notes = [] if width or height else _size_notes(model, batch[0], edited[0])
        return io.NodeOutput(to_tensor(edited), ui={OUTPUT: notes})


def _batch(**images: torch.Tensor | None) -> list[tuple[Image.Image, ...]]:
    """Images that are edited together, edit by edit. A single image goes with every one of a batch.

    Raises BadInput for batches of different lengths.
    """
    given = {name: to_pil(image) for name, image in images.items() if image is not None}
    length = max(map(len, given.values()))
    for name, pictures in given.items():
        if len(pictures) not in (1, length):
            raise BadInput(f"{name}: has {len(pictures)} images, another input {length}; give as many, or one.")
    return list(zip(*(pictures * (length if len(pictures) == 1 else 1) for pictures in given.values()), strict=True))


def _size_notes(model: Model, pictures: Sequence[Image.Image], edited: Image.Image) -> list[Note]:
    """Say that an edit is much smaller than the image that it follows, where nobody chose its size."""
    picture = pictures[model.family.sizing_control]
    if edited.width * edited.height * MUCH_SMALLER > picture.width * picture.height:
        return []
    sizes = {"from_width": picture.width, "from_height": picture.height, "width": edited.width, "height": edited.height}
    return [note("warning", "editSmaller", field="width", base_model=model.base_model, **sizes)]


def _chosen_lora(name: str, connected: dict[str, torch.Tensor] | None) -> Path | dict[str, torch.Tensor] | None:
    file = find_lora(name)
    if connected and file:
        raise BadInput(f'lora_name: "{name}" and a connected lora cannot both be used; choose "{NO_LORA}" here.')
    return file or connected


def _size(picture: Image.Image, width: int, height: int) -> Size | None:
    """Requested size; a side of 0 follows from the image's aspect. None if both are 0."""
    from ..trainer.data.resize import Size

    if not width and not height:
        return None
    aspect = picture.width / picture.height
    return Size(width or max(1, round(height * aspect)), height or max(1, round(width / aspect)))
