"""What ComfyUI's edit graphs do to images and latents, where diffusers' pipelines do otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from PIL import Image

from ..data.resize import Size, centre_crop, cut_to_multiples

LANCZOS = Image.Resampling.LANCZOS


def cropped_lanczos(image: Image.Image, size: Size) -> torch.Tensor:
    """The middle of an RGB image at `size`, in 8 bits as PIL makes it: float32 [1, 3, H, W] in 0..1."""
    part = image.crop(centre_crop(Size(*image.size), size))
    return _to_tensor(part.resize(size, LANCZOS))


def area_resized(image: Image.Image, size: Size) -> torch.Tensor:
    """An RGB image stretched to `size` by means over areas: float32 [1, 3, H, W] in 0..1."""
    return torch.nn.functional.interpolate(_to_tensor(image), (size.height, size.width), mode="area")


def cut_to_latents(image: torch.Tensor, step: int) -> torch.Tensor:
    """The middle of images [B, 3, H, W] whose sides are multiples of `step`."""
    box = cut_to_multiples(Size(image.shape[-1], image.shape[-2]), step)
    return image[..., box.top : box.bottom, box.left : box.right]


def padded_to_patches(latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] with an odd side made even: its first row or column comes once more at its end."""
    height, width = latents.shape[-2:]
    return torch.nn.functional.pad(latents, (0, width % 2, 0, height % 2), mode="circular")


def _to_tensor(image: Image.Image) -> torch.Tensor:
    # In ComfyUI's order in memory, on which a convolution's roundings depend.
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image)).contiguous()


FrameGrid = tuple[int, int, int]
"""Frames (1), token rows and columns of an image."""


class ComfyQwenRope(QwenEmbedRope):
    """In the place of a QwenImageTransformer2DModel's `pos_embed`. An odd number of rows or columns has its middle one
    at 0, and the text begins where the target ends, however large its controls are."""

    def forward(
        self,
        video_fhw: Sequence[Sequence[FrameGrid]],
        max_txt_seq_len: int,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Complex rotations of the image tokens and of the text tokens; the batch's first example stands for all."""
        images = torch.cat([image_positions(grid, index) for index, grid in enumerate(video_fhw[0])])
        text = text_positions(video_fhw[0][0], int(max_txt_seq_len))
        return self._rotations(images, device), self._rotations(text, device)

    def _rotations(self, positions: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        axes = zip(positions.unbind(-1), self.axes_dim, strict=True)
        return torch.cat([self.rope_params(axis, dim, self.theta) for axis, dim in axes], dim=-1).to(device)


def image_positions(grid: FrameGrid, index: int) -> torch.Tensor:
    """[rows * columns, 3]: which image (0 is the target), row and column of its tokens."""
    _, height, width = grid
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    return torch.stack(torch.meshgrid(torch.tensor([index]), rows, columns, indexing="ij"), dim=-1).reshape(-1, 3)


def text_positions(target: FrameGrid, length: int) -> torch.Tensor:
    """[length, 3]: the same on every axis, from the end of the target on."""
    start = max(target[1] // 2, target[2] // 2)
    return torch.arange(start, start + length)[:, None].expand(length, 3)
