"""PipelineFamily, the part that the families share because their diffusers pipelines do: image processing, packing,
text encoder and VAE."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from packaging.version import Version
from PIL import Image

from ..data.resize import Size, nearest_possible
from .family import Family
from .types import Grid, PackedLatents

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
"""Argument of `from_pretrained` for the dtype."""


VAE_SCALE = 8
"""Side of a latent pixel in pixels."""


HEAD_SIZE = 128
"""Channels of an attention head in every Flux and Qwen-Image transformer."""


AXES = (16, 56, 56)
"""Rotary dimensions of frame, row and column in every Flux and Qwen-Image transformer."""


class PipelineFamily(Family):
    """A family whose diffusers pipeline is an edit pipeline of the Flux or Qwen-Image kind."""

    pipeline: ClassVar[type[DiffusionPipeline]]
    """The pipeline; its static methods pack and unpack latents."""
    transformer: ClassVar[type[ModelMixin]]

    def empty_transformer(self, config: Mapping[str, Any]) -> ModelMixin:
        with torch.device("meta"):
            return self.bare_transformer(config)

    def bare_transformer(self, config: Mapping[str, Any]) -> ModelMixin:
        return self.transformer.from_config(config)

    def load_codec(
        self, folder: Path, device: torch.device | str, dtype: torch.dtype, fingerprint: str
    ) -> PipelineCodec:
        vae = self.vae_file.model.from_pretrained(folder, subfolder="vae", **from_folder(dtype))
        return self.codec_of(vae, device, fingerprint)

    def codec_of(self, vae: torch.nn.Module, device: torch.device | str, fingerprint: str) -> PipelineCodec:
        return PipelineCodec(vae, device, fingerprint)

    def text_pipeline(self, folder: Path | None, dtype: torch.dtype, **loaded: Any) -> DiffusionPipeline:
        """Load the pipeline with only its text encoders and tokenizers; those in `loaded` replace the folder's."""
        if folder is None:
            return self.pipeline(scheduler=None, transformer=None, vae=None, **loaded)
        return self.pipeline.from_pretrained(folder, transformer=None, vae=None, **loaded, **from_folder(dtype))

    def sample_size(self, wanted: Size) -> Size:
        return nearest_possible(wanted, self.variant.max_sample_resolution, self.patch)

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        return image_processor(self.patch).preprocess(image, size.height, size.width)

    def prepare_target(self, image: Image.Image, size: Size) -> torch.Tensor:
        return self.prepare_control(image, size)

    def pack(self, latents: torch.Tensor) -> PackedLatents:
        batch, channels, height, width = latents.shape
        tokens = self.pipeline._pack_latents(latents, batch, channels, height, width)
        return PackedLatents(tokens, Grid(height // 2, width // 2))

    def unpack(self, packed: PackedLatents) -> torch.Tensor:
        height, width = packed.grid.height * self.patch, packed.grid.width * self.patch
        latents = self.pipeline._unpack_latents(packed.tokens, height, width, VAE_SCALE)
        return latents.reshape(latents.shape[0], latents.shape[1], *latents.shape[-2:])


def from_folder(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`: nothing is downloaded or unpickled."""
    return {DTYPE: dtype, "local_files_only": True, "use_safetensors": True}


@cache
def image_processor(patch: int) -> VaeImageProcessor:
    """The pipelines' image processor (PIL's Lanczos), without normalization from 0..1 to -1..1."""
    return VaeImageProcessor(vae_scale_factor=patch, do_normalize=False)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert [1, 3, H, W] float32 in 0..1 to an 8-bit image."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image))[0]


class PipelineTextEncoder:
    """Base of a family's TextEncoder: a diffusers pipeline without its transformer and VAE."""

    def __init__(self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.pipeline = pipeline
        self.module = torch.nn.ModuleList(
            part.eval().requires_grad_(False)
            for part in pipeline.components.values()
            if isinstance(part, torch.nn.Module)
        )
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.module.to(self.device)


class PipelineCodec:
    """A diffusers VAE as ImageCodec."""

    def __init__(self, vae: torch.nn.Module, device: torch.device | str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.module = vae.eval().requires_grad_(False)
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        self.module.to(device)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return retrieve_latents(self.module.encode(self._place(pixels)), sample_mode="argmax")

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.module.decode(self._place(latents), return_dict=False)[0]

    def for_batches(self) -> PipelineCodec | None:
        return self

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.module.device, self.module.dtype)


def any_of(*names: str) -> str:
    """Regular expression group that matches one of several module names."""
    return "(" + "|".join(name.replace(".", r"\.") for name in names) + ")"
