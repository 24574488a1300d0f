"""What ComfyUI's edit graphs do to images and latents, where diffusers' pipelines do otherwise."""

from __future__ import annotations

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..resize import centre_crop, cut_to_multiples
from .family import Size

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
