"""The families under ComfyUI's policy: images and latents as ComfyUI's edit graphs make them, where diffusers'
pipelines differ. Checked against ComfyUI 0.33's nodes FluxKontextImageScale and TextEncodeQwenImageEdit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from PIL import Image

from ..data.resize import Size, at_area_of, centre_crop, cut_to_multiples
from .diffusers_family import VAE_SCALE
from .flux_kontext import FluxKontext
from .qwen_image_edit import QwenImageEdit, at_least
from .types import ImageCodec, PackedLatents

LANCZOS = Image.Resampling.LANCZOS


class ComfyFluxKontext(FluxKontext):
    """FLUX.1 Kontext after FluxKontextImageScale: sizes by the image's own aspect ratio, centre crop, Lanczos."""

    policy = "comfyui"
    aspect_step: ClassVar[int] = 1

    def caption_length(self) -> int | None:
        return None  # ComfyUI cuts no text off

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        return cropped_lanczos(image, size)


class ComfyQwenRope(QwenEmbedRope):
    """Rotary embedding of ComfyUI's QwenImage, to replace `pos_embed` of a QwenImageTransformer2DModel.

    An odd number of rows or columns has its middle one at position 0, and the text begins where the target ends,
    however large the controls are.
    """

    def forward(
        self,
        video_fhw: Sequence[Sequence[FrameGrid]],
        max_txt_seq_len: int,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations of the image tokens and of the text tokens, each [tokens, head_size/2] of dtype complex64, for the
        token grids of the batch's first example, which all examples share."""
        images = torch.cat([image_positions(grid, index) for index, grid in enumerate(video_fhw[0])])
        text = text_positions(video_fhw[0][0], int(max_txt_seq_len))
        return self._rotations(images, device), self._rotations(text, device)

    def _rotations(self, positions: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        axes = zip(positions.unbind(-1), self.axes_dim, strict=True)
        return torch.cat([self.rope_params(axis, dim, self.theta) for axis, dim in axes], dim=-1).to(device)


class ComfyQwenImageEdit(QwenImageEdit):
    """Qwen-Image-Edit after TextEncodeQwenImageEdit: controls resized by area averaging to sides of any length."""

    policy = "comfyui"
    rope_class = ComfyQwenRope
    empty_prompt = ""

    def caption_room(self, target: Size, controls: Sequence[Size]) -> int | None:
        return None  # ComfyQwenRope computes positions of any number

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        return at_least(at_area_of(control, self.control_area(target, control_resolution), 1), VAE_SCALE)

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        return area_resized(image, size)

    def encode(self, codec: ImageCodec, image: torch.Tensor) -> torch.Tensor:
        # The text encoder sees the whole control, the VAE only its centre of whole latent pixels.
        return super().encode(codec, cut_to_latents(image, VAE_SCALE))

    def pack(self, latents: torch.Tensor) -> PackedLatents:
        return super().pack(padded_to_patches(latents))


def cropped_lanczos(image: Image.Image, size: Size) -> torch.Tensor:
    """Crop and resize an RGB image as `kontext_scaled` does: [1, 3, H, W] float32 in 0..1."""
    return _to_tensor(kontext_scaled(image, size))


def kontext_scaled(image: Image.Image, size: Size) -> Image.Image:
    """Crop the centre of an RGB image and resize it with PIL's Lanczos in 8 bits, as FluxKontextImageScale does."""
    return image.crop(centre_crop(Size(*image.size), size)).resize(size, LANCZOS)


def area_resized(image: Image.Image, size: Size) -> torch.Tensor:
    """Stretch an RGB image to `size` by area averaging: [1, 3, H, W] float32 in 0..1."""
    return torch.nn.functional.interpolate(_to_tensor(image), (size.height, size.width), mode="area")


def cut_to_latents(image: torch.Tensor, step: int) -> torch.Tensor:
    """Crop the centre of images [B, 3, H, W] float32 to sides that are multiples of `step`."""
    box = cut_to_multiples(Size(image.shape[-1], image.shape[-2]), step)
    return image[..., box.top : box.bottom, box.left : box.right]


def padded_to_patches(latents: torch.Tensor) -> torch.Tensor:
    """Pad latents [B, C, h, w] of any float dtype to even sides by repeating the first row or column at the end."""
    height, width = latents.shape[-2:]
    return torch.nn.functional.pad(latents, (0, width % 2, 0, height % 2), mode="circular")


def _to_tensor(image: Image.Image) -> torch.Tensor:
    # In ComfyUI's memory layout, on which the rounding of a convolution depends.
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image)).contiguous()


FrameGrid = tuple[int, int, int]
"""Frames (1), token rows and token columns of an image."""


def image_positions(grid: FrameGrid, index: int) -> torch.Tensor:
    """Positions [rows * columns, 3] int64 of an image's tokens: image index (0 is the target), row, column."""
    _, height, width = grid
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    return torch.stack(torch.meshgrid(torch.tensor([index]), rows, columns, indexing="ij"), dim=-1).reshape(-1, 3)


def text_positions(target: FrameGrid, length: int) -> torch.Tensor:
    """Positions [length, 3] int64 of text tokens: the same on every axis, counted from the end of the target."""
    start = max(target[1] // 2, target[2] // 2)
    return torch.arange(start, start + length)[:, None].expand(length, 3)
