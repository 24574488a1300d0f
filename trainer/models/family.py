"""Family, the interface to what differs between model families: image sizes, latent normalization and packing, the
forward pass, LoRA targets and guidance. Noising, loss, caching and checkpoints are written once, outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ..data.resize import Size
from ..families.info import FamilyInfo, Policy, Variant
from ..families.registry import find_family
from .types import ImageCodec, PackedLatents, TextConditioning, TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import ModelMixin
    from PIL import Image

    from ..single_file.key_mapping import Layout, Shapes
    from ..single_file.text_encoder import EncoderFile
    from ..single_file.tokenizer import Tokenizer
    from ..single_file.vae import VaeFile


def family_class(base_model: str, policy: Policy = "diffusers") -> type[Family]:
    """The class of a base model's family under a conditioning policy. Raises BadInput for an unknown base model."""
    module, _, name = find_family(base_model).implementations[policy].rpartition(".")
    return getattr(import_module(module, __package__), name)


class Family(ABC):
    """One variant of a model family under one conditioning policy."""

    info: ClassVar[FamilyInfo]
    policy: ClassVar[Policy] = "diffusers"
    patch: ClassVar[int] = 16
    """Side of a token in pixels; every image size is a multiple of it."""
    latent_step: ClassVar[int] = 8
    """Side of a latent pixel in pixels, in normalized latents."""
    text_encoders: ClassVar[Mapping[str, EncoderFile]]
    """Text encoders as single files, by subfolder of the pipeline layout."""
    tokenizers: ClassVar[Mapping[str, Tokenizer]]
    """Tokenizers of those files, by subfolder."""
    counted_tokenizer: ClassVar[str] = ""
    """Subfolder of the tokenizer that the length of captions is counted with; empty: it is not counted."""
    sizing_control: ClassVar[int] = 0
    """Index of the control image whose shape an edit takes that nobody chose a size for; -1 for the last."""
    longest_caption: int = 0
    """Tokens of the longest caption to be encoded, for memory estimates; 0: not known."""
    vae_file: ClassVar[VaeFile]
    """The VAE as a single file."""

    def __init__(self, variant: Variant, vae_config: Mapping[str, Any]) -> None:
        """`vae_config` is the VAE's config.json, for the latent normalization."""
        self.variant = variant
        self.vae_config = vae_config

    # loading

    @abstractmethod
    def empty_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """The transformer of this diffusers config without storage, on the meta device."""

    @abstractmethod
    def bare_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """The transformer of this diffusers config on the current device. Its weights have no values yet."""

    @abstractmethod
    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        """The diffusers config of a transformer, from the shapes in its single file. Raises KeyError if a tensor is
        missing that every transformer of this family has."""

    @property
    def configs(self) -> Path:
        """Folder with the configs of the variant as published, in diffusers' pipeline layout without weights."""
        return self.variant.configs or self.info.configs

    def with_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A diffusers config with the options of the transformer that its weights do not show."""
        return {**config, **dict.fromkeys(self.variant.options, True)}

    @abstractmethod
    def layout(self, transformer: torch.nn.Module) -> Layout:
        """Names and fusion of the transformer's modules in single files."""

    @abstractmethod
    def other_model(self, shapes: Shapes) -> str | None:
        """Another model with this family's kind of transformer file, in words; None if the shapes may be this
        family's."""

    @abstractmethod
    def load_text_encoder(
        self,
        folder: Path | None,
        device: torch.device | str,
        dtype: torch.dtype,
        fingerprint: str,
        loaded: Mapping[str, Any] | None = None,
    ) -> TextEncoder:
        """Load the pipeline's text encoder; it reports `fingerprint` as its own. Encoders and tokenizers in `loaded`,
        by subfolder, take the place of the folder's; without a folder all of them are in there."""

    @abstractmethod
    def load_codec(self, folder: Path, device: torch.device | str, dtype: torch.dtype, fingerprint: str) -> ImageCodec:
        """Load the pipeline's VAE; it reports `fingerprint` as its own."""

    @abstractmethod
    def wrap_vae(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> ImageCodec:
        """Wrap a loaded diffusers VAE as an image codec."""

    # sizes

    @abstractmethod
    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        """Size to which a control image is resized; `target` is the target's final size, for control_resolution
        "target"."""

    def text_control_size(self, control: Size, latent_size: Size) -> Size:
        """Size at which the text encoder sees a control image of size `control` whose latents are made at
        `latent_size`."""
        return latent_size

    @abstractmethod
    def target_size(self, target: Size, resolution: int) -> Size:
        """The aspect-ratio bucket of a target image at an area of resolution x resolution pixels."""

    @abstractmethod
    def sample_size(self, wanted: Size) -> Size:
        """The nearest size that the model can make."""

    def edit_size(self, controls: Sequence[Size]) -> Size:
        """Size of an edit of control images of these sizes, where nobody chose one."""
        return self.target_size(controls[self.sizing_control], self.variant.resolution)

    def size_fault(self, size: Size) -> str | None:
        """Why the model cannot take an image that is resized to `size`; None if it can."""
        return None

    def caption_length(self) -> int | None:
        """Tokens of a caption that are read, while the rest is ignored; None if all are."""
        return None

    def caption_room(self, target: Size, controls: Sequence[Size]) -> int | None:
        """Tokens that a caption may have beside images of these final sizes; None for any number."""
        return None

    # images

    def fit_controls(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Crop and resize the RGB control images of an edit, as an edit graph does before the images are prepared;
        where there is no such step they stay as they are."""
        return [*images]

    @abstractmethod
    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        """Resize an RGB control image as inference does: [1, 3, H, W] float32 in 0..1."""

    @abstractmethod
    def prepare_target(self, image: Image.Image, size: Size) -> torch.Tensor:
        """Resize an RGB target image like its control: [1, 3, H, W] float32 in 0..1."""

    # latents

    @abstractmethod
    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalize the codec's latents [B, C, h, w] for the transformer, as the pipeline does; shape and dtype
        stay."""

    @abstractmethod
    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Invert `normalize` on [B, C, h, w] as the pipeline does before decoding; the dtype stays."""

    def encode(self, codec: ImageCodec, image: torch.Tensor) -> torch.Tensor:
        """Encode a prepared image [B, 3, H, W] float32 in 0..1 to normalized latents [B, C, h, w] in the codec's dtype,
        whose pixels are `latent_step` image pixels wide."""
        return self.normalize(codec.encode(2.0 * image - 1.0))

    @abstractmethod
    def pack(self, latents: torch.Tensor) -> PackedLatents:
        """Pack normalized latents [B, C, h, w] into tokens of the same dtype."""

    @abstractmethod
    def unpack(self, packed: PackedLatents) -> torch.Tensor:
        """Unpack tokens to normalized latents [B, C, h, w] of the same dtype."""

    # text

    @abstractmethod
    def collate_text(self, texts: Sequence[TextConditioning]) -> TextConditioning:
        """Concatenate conditionings, tensors [1, ...] of any dtype, to a batch [B, ...]; padding, if any, is masked."""

    def text_groups(self, texts: Sequence[TextConditioning]) -> list[list[int]]:
        """Indices of the conditionings, tensors [1, ...] of any dtype, that can share a forward pass, group by group:
        all in one where padding is masked."""
        return [list(range(len(texts)))]

    # the model

    @abstractmethod
    def predict(
        self,
        transformer: torch.nn.Module,
        noisy: PackedLatents,
        controls: Sequence[PackedLatents],
        text: TextConditioning,
        sigma: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        """Run one forward pass and return the velocity of the noisy tokens, in their shape and dtype.

        `sigma` is [B] float32 in 0..1; `guidance` feeds the guidance embedding of models that have one.
        """

    @abstractmethod
    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        """Regular expression of full module names, for PEFT's `target_modules`. `which` is RunSettings.lora_targets.
        Layers of the blocks whose output reaches no prediction are left out."""

    def idle_layers(self, transformer: torch.nn.Module) -> str:
        """Regular expression of the full names of modules whose output reaches no prediction; empty: none."""
        return ""

    @abstractmethod
    def text_shapes(self, config: Mapping[str, Any], controls: Sequence[Size]) -> dict[str, tuple[int, ...]]:
        """Shapes, without the batch dimension, of the conditioning of a caption of typical length with control images
        that the text encoder sees at these sizes, for the transformer of this diffusers config."""

    @abstractmethod
    def few_blocks(self, count: int) -> list[dict[str, int]]:
        """For each kind of block, the entries of the diffusers config that make a transformer of `count` of them."""

    @abstractmethod
    def modulation_layers(self) -> str:
        """Regular expression of the full names of the Linears whose input is only the embedding of timestep, guidance
        and pooled text: vectors of an example, not of its tokens. Empty: none that are worth offloading."""

    def modulation_rows(self, transformer: torch.nn.Module, layer: str) -> int:
        """Vectors of each example that the modulation layer of this full name is given: 1, or 2 where the second half
        of its input [2B, width] is for tokens that are seen at timestep 0."""
        return 1

    @abstractmethod
    def shift(self, scheduler: Mapping[str, Any], tokens: int, steps: int) -> float:
        """Shift of the noise levels of `steps` sampler steps for an image of that many tokens, as the pipeline computes
        it from its scheduler's config."""

    @abstractmethod
    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        """Default prompt of the second pass of classifier-free guidance; None if there is no second pass."""

    @abstractmethod
    def combine_guidance(self, positive: torch.Tensor, negative: torch.Tensor, guidance: float) -> torch.Tensor:
        """Combine two velocities [B, tokens, channels] of one float dtype by classifier-free guidance, as the pipeline
        does; shape and dtype stay."""
