"""PipelineFamily, the part that the families share because their diffusers pipelines do: image processing, packing,
text encoder and VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import no_init_weights
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_latents
from packaging.version import Version
from PIL import Image
from transformers import PreTrainedModel

from ..blocks.install import use_blocks
from ..blocks.trial import OwnBlock
from ..data.resize import Size, nearest_possible
from ..errors import BadInput
from .family import Family
from .types import Grid, PackedLatents, TextEncoder

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
"""Argument of `from_pretrained` for the dtype."""


VAE_SCALE = 8
"""Side of a latent pixel in pixels."""


TILE = 512
"""Side of the VAE's tiles in pixels. A judgement: a quarter of the memory of 1024 x 1024, with few seams."""


HEAD_SIZE = 128
"""Channels of an attention head in every Flux and Qwen-Image transformer."""


AXES = (16, 56, 56)
"""Rotary dimensions of frame, row and column in every Flux and Qwen-Image transformer."""


class PipelineFamily(Family):
    """A family whose diffusers pipeline is an edit pipeline of the Flux or Qwen-Image kind."""

    pipeline: ClassVar[type[DiffusionPipeline]]
    pack_latents: ClassVar[Callable[..., torch.Tensor]]
    """The pipeline's function from latents [B, C, h, w] to tokens [B, h/2 * w/2, 4 * C] of the same dtype."""
    unpack_latents: ClassVar[Callable[..., torch.Tensor]]
    """The pipeline's function from tokens [B, h/2 * w/2, 4 * C] to latents [B, C, h, w] of the same dtype."""
    transformer: ClassVar[type[ConfigMixin]]
    blocks: ClassVar[Mapping[type[torch.nn.Module], type[OwnBlock]]]
    """Classes of the repeated blocks, diffusers' -> ours."""

    def empty_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        with torch.device("meta"):
            return self.bare_transformer(config)

    def bare_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        with no_init_weights():
            transformer = self.transformer.from_config(dict(config))
        assert isinstance(transformer, torch.nn.Module)
        use_blocks(transformer, self.blocks)
        return transformer

    def load_text_encoder(
        self,
        folder: Path | None,
        device: torch.device | str,
        dtype: torch.dtype,
        fingerprint: str,
        loaded: Mapping[str, Any] | None = None,
    ) -> TextEncoder:
        return self.wrap_text_encoder(self.text_pipeline(folder, dtype, **(loaded or {})), device, fingerprint)

    @abstractmethod
    def wrap_text_encoder(
        self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str
    ) -> TextEncoder:
        """Wrap a loaded pipeline of this family, which has no transformer and no VAE."""

    def load_codec(
        self, folder: Path, device: torch.device | str, dtype: torch.dtype, fingerprint: str
    ) -> PipelineCodec:
        model = self.vae_file.model
        assert issubclass(model, ModelMixin)
        return self.wrap_vae(load_pretrained(model, folder, "vae", dtype), device, fingerprint)

    def wrap_vae(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> PipelineCodec:
        """Make a codec of a loaded VAE, whose digest is `fingerprint`."""
        return PipelineCodec(vae, device, fingerprint)

    def text_pipeline(self, folder: Path | None, dtype: torch.dtype, **loaded: Any) -> DiffusionPipeline:
        """Load the pipeline with only its text encoders and tokenizers; those in `loaded` replace the folder's."""
        if folder is None:
            others: dict[str, Any] = dict.fromkeys(("scheduler", "transformer", "vae"))
            return self.pipeline(**others, **loaded)
        for name, encoder in self.text_encoders.items():
            if name not in loaded:
                loaded[name] = load_pretrained(encoder.model, folder, name, dtype)
        return self.pipeline.from_pretrained(folder, transformer=None, vae=None, **loaded, **from_folder(dtype))

    def sample_size(self, wanted: Size) -> Size:
        return nearest_possible(wanted, self.variant.max_sample_resolution, self.patch)

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        return image_processor(self.patch).preprocess(image, size.height, size.width)

    def prepare_target(self, image: Image.Image, size: Size) -> torch.Tensor:
        return self.prepare_control(image, size)

    def pack(self, latents: torch.Tensor) -> PackedLatents:
        batch, channels, height, width = latents.shape
        tokens = self.pack_latents(latents, batch, channels, height, width)
        return PackedLatents(tokens, Grid(height // 2, width // 2))

    def unpack(self, packed: PackedLatents) -> torch.Tensor:
        height, width = packed.grid.height * self.patch, packed.grid.width * self.patch
        latents = self.unpack_latents(packed.tokens, height, width, VAE_SCALE)
        return latents.reshape(latents.shape[0], latents.shape[1], *latents.shape[-2:])

    def shift(self, scheduler: Mapping[str, Any], tokens: int, steps: int) -> float:
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return calculate_shift(tokens, *(scheduler[name] for name in names))


def from_folder(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`: nothing is downloaded or unpickled."""
    return {DTYPE: dtype, "local_files_only": True, "use_safetensors": True}


Pretrained = TypeVar("Pretrained", ModelMixin, PreTrainedModel)


def load_pretrained(model: type[Pretrained], folder: Path, name: str, dtype: torch.dtype) -> Pretrained:
    """Load a model of the pipeline from its subfolder `name`. Raises BadInput when its files lack weights, which the
    libraries would replace by random numbers with a warning."""
    result: Any = model.from_pretrained(folder, subfolder=name, output_loading_info=True, **from_folder(dtype))
    loaded, info = result
    if missing := sorted(info["missing_keys"]):
        raise BadInput(
            f"{folder / name} is not a whole {model.__name__}: {len(missing)} of its tensors are missing, such as "
            f"{missing[0]!r}. Download the folder again, or use one that belongs to this base model."
        )
    return loaded


@cache
def image_processor(patch: int) -> VaeImageProcessor:
    """The pipelines' image processor (PIL's Lanczos), without normalization from 0..1 to -1..1."""
    return VaeImageProcessor(vae_scale_factor=patch, do_normalize=False)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert [1, 3, H, W] float32 in 0..1 to an 8-bit image."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image))[0]


class Mover(Protocol):
    """Something that can be moved to a device."""

    def to(self, device: torch.device) -> Any:
        """Move the weights."""
        ...


class PipelineTextEncoder:
    """Base of a family's TextEncoder: a diffusers pipeline without its transformer and VAE."""

    def __init__(self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.module = torch.nn.ModuleList(
            part.eval().requires_grad_(False)
            for part in pipeline.components.values()
            if isinstance(part, torch.nn.Module)
        )
        self.mover: Mover = self.module
        """Moves the weights to a device; something else than the module where they are streamed."""
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        self.device = torch.device(device)
        self.mover.to(self.device)


@runtime_checkable
class LatentCoder(Protocol):
    """Methods of diffusers' VAE classes, which no common base declares."""

    def encode(self, x: torch.Tensor) -> Any:
        """Encode images of any shape and dtype that the VAE takes to an output with a latent distribution."""
        ...

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """Decode latents of any shape and dtype that the VAE takes to an output, or a tuple, with images."""
        ...


class PipelineCodec:
    """A diffusers VAE as ImageCodec."""

    def __init__(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.module = vae
        self.module.eval().requires_grad_(False)
        assert isinstance(vae, LatentCoder)
        self._coder: LatentCoder = vae
        self.make_room: Callable[[], bool] = lambda: False
        """Frees device memory for another try; False if there is none to free."""
        self.has_tiled = False
        """It has worked in tiles."""
        self._is_too_large = False
        """Whole images have run out of memory."""
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        # ModelMixin decorates `to`, which hides its types.
        torch.nn.Module.to(self.module, device)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, H, W] float32 in -1..1 to the mode of the latent distribution, [B, C, H/8, W/8] in the VAE's
        dtype."""
        return retrieve_latents(self._run(self._coder.encode, self._place(pixels)), sample_mode="argmax")

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [B, C, h, w] of any float dtype to [B, 3, 8h, 8w] in -1..1 in the VAE's dtype."""
        return self._run(partial(self._coder.decode, return_dict=False), self._place(latents))[0]

    def use_tiles(self, wanted: bool) -> None:
        """Work in tiles of `TILE` pixels from now on, or on whole images again."""
        wanted = wanted or self._is_too_large
        vae: Any = self.module
        if not wanted:
            vae.disable_tiling()
        elif isinstance(vae, AutoencoderKL | AutoencoderKLFlux2):
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // VAE_SCALE
            vae.enable_tiling()
        else:
            vae.enable_tiling(TILE, TILE, 3 * TILE // 4, 3 * TILE // 4)
        self.has_tiled |= wanted

    def _run(self, call: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        """Run the VAE on `images` or latents [B, ...] in its dtype. Where memory does not suffice for a single one, the
        other components leave the device, then it works in tiles. Raises OutOfMemoryError."""
        while True:
            try:
                return call(images)
            except torch.OutOfMemoryError:
                if len(images) > 1 or self._is_too_large:
                    raise
            # Outside of the handler, whose traceback keeps tensors alive.
            if not self.make_room():
                self._is_too_large = True
                self.use_tiles(True)

    def for_batches(self) -> PipelineCodec | None:
        """The codec to encode many images with; None if they must be encoded one at a time."""
        return self

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.module.device, self.module.dtype)


def config_of(model: torch.nn.Module) -> Mapping[str, Any]:
    """The diffusers config of a model."""
    assert isinstance(model, ConfigMixin)
    return model.config


def any_of(*names: str) -> str:
    """Regular expression group that matches one of several module names."""
    return "(" + "|".join(name.replace(".", r"\.") for name in names) + ")"
