"""Qwen-Image-Edit-2509 and -2511: the steps of diffusers' QwenImageEditPlusPipeline, separated for training, and those
of ComfyUI 0.33's node TextEncodeQwenImageEditPlus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline
from PIL import Image

from ..data.resize import Size, at_area_of, nearest_aspect, scaled
from ..families.records import QWEN_IMAGE_EDIT_PLUS
from ..single_file.key_mapping import Shapes
from .comfyui_parity import ComfyQwenImageEdit, kontext_scaled
from .diffusers_family import VAE_SCALE, config_of, to_pil
from .flux_kontext import PREFERRED_RESOLUTION, PREFERRED_SIZES
from .qwen_encoders import QwenTextEncoder
from .qwen_image_edit import QwenImageEdit, rounded_area

SEEN = 384 / 1024
"""Side of what the text encoder sees of a control, in units of the side that its latents are made at. Source: the
pipeline's CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE, and ComfyUI's node."""


class QwenImageEditPlus(QwenImageEdit):
    """Qwen-Image-Edit with several control images, under diffusers' policy.

    The text encoder sees each control at a smaller size than the VAE. Qwen-Image-Edit-2511 modulates the controls'
    tokens by timestep 0: the transformer's option `zero_cond_t`.
    """

    info = QWEN_IMAGE_EDIT_PLUS
    pipeline = QwenImageEditPlusPipeline
    pack_latents = staticmethod(QwenImageEditPlusPipeline._pack_latents)
    unpack_latents = staticmethod(QwenImageEditPlusPipeline._unpack_latents)
    sizing_control = -1

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        return self.with_options(super().transformer_config(shapes))

    def other_model(self, shapes: Shapes) -> str | None:
        for variant in self.info.variants:
            if variant.marker in shapes and variant.marker != self.variant.marker:
                return f"{variant.name}; choose that as base_model"
        return None if self.variant.marker in shapes else super().other_model(shapes)

    def wrap_text_encoder(
        self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str
    ) -> QwenTextEncoder:
        assert isinstance(pipeline, QwenImageEditPlusPipeline)
        return PicturesTextEncoder(pipeline, device, fingerprint)

    def text_control_size(self, control: Size, latent_size: Size) -> Size:
        return rounded_area(control, self.seen_side**2)

    @property
    def seen_side(self) -> int:
        """Square root of the area at which the text encoder sees controls, in pixels."""
        return round(self.variant.resolution * SEEN)

    def modulation_rows(self, transformer: torch.nn.Module, layer: str) -> int:
        return 2 if config_of(transformer)["zero_cond_t"] and ".img_mod." in layer else 1


class PicturesTextEncoder(QwenTextEncoder):
    """Qwen2.5-VL with the pipeline's prompt template, in which the control images are "Picture 1", "Picture 2", ..."""

    def shown(self, controls: Sequence[torch.Tensor]) -> Any:
        return [to_pil(control) for control in controls] or None


class ComfyQwenImageEditPlus(ComfyQwenImageEdit, QwenImageEditPlus):
    """Qwen-Image-Edit with several control images, after TextEncodeQwenImageEditPlus: controls resized by area
    averaging, to sides of any length for the text encoder and to multiples of 8 for the VAE.

    Before that, the first image of an edit goes through FluxKontextImageScale, and the edit takes its size, as in
    ComfyUI's templates.
    """

    sizing_control = 0

    def edit_size(self, controls: Sequence[Size]) -> Size:
        preferred = nearest_aspect(controls[0], PREFERRED_SIZES, 1)
        return scaled(preferred, self.variant.resolution / PREFERRED_RESOLUTION, self.patch)

    def fit_controls(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        size = self.edit_size([Size(*images[0].size)])
        return [kontext_scaled(images[0], size), *images[1:]]

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        return at_area_of(control, self.control_area(target, control_resolution), VAE_SCALE)

    def text_control_size(self, control: Size, latent_size: Size) -> Size:
        return at_area_of(control, Size(self.seen_side, self.seen_side), 1)
