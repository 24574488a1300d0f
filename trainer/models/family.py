"""What differs between model families, and nothing else.

A family says how image sizes follow from a picture, how latents are normalized and packed into tokens, how one
forward pass is called, which modules a LoRA targets and with which sampler defaults images are drawn. Noising, loss,
caching, checkpointing and events are written once, outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

    from ..single_file.key_mapping import Layout, Shapes
    from ..single_file.text_encoder import EncoderFile
    from ..single_file.tokenizer import Tokenizer
    from ..single_file.vae import VaeFile
from ..data.resize import Size
from .types import ImageCodec, PackedLatents, Part, TextConditioning, TextEncoder, Variant


class Family(ABC):
    """One model family under one conditioning policy."""

    name: ClassVar[str]
    """`flux-kontext` or `qwen-image-edit`."""
    text_sees_control: ClassVar[bool]
    """Whether the text encoder is shown the control image, so that a caption's conditioning differs from image to
    image."""
    variants: ClassVar[Mapping[str, Variant]]
    """The base models of this family by name."""
    parts: ClassVar[Mapping[Part, tuple[str, ...]]]
    """The folders of the pipeline's layout that hold each part."""
    patch: ClassVar[int] = 16
    """Pixels along a token's side; every image size is a multiple of it."""
    kind: ClassVar[str]
    """detect.py's name for a single file of its transformer."""
    name_hint: ClassVar[str]
    """What the names of its transformers' files have in them, in lower case."""
    lookalike_names: ClassVar[str]
    """A regular expression that is found in names of files of other models with the same tensors."""
    text_encoders: ClassVar[Mapping[str, EncoderFile]]
    """Its text encoders as single files, by their folders in the pipeline's layout."""
    tokenizers: ClassVar[Mapping[str, Tokenizer]]
    """The tokenizers that go with those files, by their folders in the pipeline's layout."""
    vae_file: ClassVar[VaeFile]
    """Its VAE as a single file."""
    pipeline_class: ClassVar[str]
    """The diffusers pipeline whose inference is matched."""

    def __init__(self, scale: Variant, vae_config: Mapping[str, Any], policy: str = "diffusers") -> None:
        """`vae_config`: the VAE's config.json, for the latent normalization."""
        self.variant = scale
        self.vae_config = vae_config
        self.policy = policy

    # loading

    @abstractmethod
    def empty_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """The transformer of this diffusers config without storage, on the meta device."""

    @abstractmethod
    def bare_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """The transformer of this diffusers config with fresh weights, on the current device."""

    @abstractmethod
    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        """diffusers' config of the transformer whose single file has these tensors. Raises KeyError where one is
        missing that every transformer of this family has."""

    @abstractmethod
    def layout(self, transformer: torch.nn.Module) -> Layout:
        """How single files name and join the transformer's modules."""

    @abstractmethod
    def other_model(self, shapes: Shapes) -> str | None:
        """Which model of another make the transformer of this kind and shapes is, in words; None when it may be this
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
        """The pipeline's text encoder; `fingerprint` becomes the port's. Encoders and tokenizers in `loaded`, by
        their folders' names, take the place of the folder's; without a folder they are all there."""

    @abstractmethod
    def load_codec(self, folder: Path, device: torch.device | str, dtype: torch.dtype, fingerprint: str) -> ImageCodec:
        """The pipeline's VAE; `fingerprint` becomes the port's."""

    @abstractmethod
    def codec_of(self, vae: torch.nn.Module, device: torch.device | str, fingerprint: str) -> ImageCodec:
        """The same of a VAE that is loaded."""

    # sizes

    @abstractmethod
    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        """Size that a control image gets; `target` is the target's final size, for control_resolution "target"."""

    @abstractmethod
    def target_size(self, target: Size, resolution: int) -> Size:
        """The aspect-ratio bucket of a target image at an area of resolution x resolution pixels."""

    @abstractmethod
    def sample_size(self, wanted: Size) -> Size:
        """The nearest size that the model can make."""

    # images

    @abstractmethod
    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        """Resize an RGB control image as inference does: float32 [1, 3, H, W] in 0..1."""

    @abstractmethod
    def prepare_target(self, image: Image.Image, size: Size) -> torch.Tensor:
        """Resize an RGB target image like its control: float32 [1, 3, H, W] in 0..1."""

    # latents

    @abstractmethod
    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Codec latents [B, C, h, w] to what the transformer is trained on, as the pipeline does."""

    @abstractmethod
    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`, as the pipeline does before decoding."""

    def encode(self, codec: ImageCodec, image: torch.Tensor) -> torch.Tensor:
        """A prepared image, float32 [B, 3, H, W] in 0..1, to normalized latents [B, C, H/8, W/8]."""
        return self.normalize(codec.encode(2.0 * image - 1.0))

    @abstractmethod
    def pack(self, latents: torch.Tensor) -> PackedLatents:
        """Normalized latents [B, C, h, w] to tokens."""

    @abstractmethod
    def unpack(self, packed: PackedLatents) -> torch.Tensor:
        """Tokens to normalized latents [B, C, h, w]."""

    # text

    @abstractmethod
    def collate_text(self, texts: Sequence[TextConditioning]) -> TextConditioning:
        """Join single conditionings to a batch whose padding, if any, is masked."""

    def text_groups(self, texts: Sequence[TextConditioning]) -> list[list[int]]:
        """Which of these single conditionings can share a forward pass, by index: all, where padding is masked."""
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
        """One forward pass: the velocity of the noisy tokens, same shape.

        `sigma` is float32 [B] in 0..1. `guidance` feeds the guidance embedding of bases that have one.
        """

    @abstractmethod
    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        """A regular expression of full module names, for peft's `target_modules`. `which` is
        RunSettings.lora_targets. Layers of the blocks whose output reaches no prediction are left out."""

    def idle_layers(self, transformer: torch.nn.Module) -> str:
        """A regular expression of the full names of the modules whose output reaches no prediction; empty: none."""
        return ""

    @abstractmethod
    def text_shapes(self, config: Mapping[str, Any], control: Size) -> dict[str, tuple[int, ...]]:
        """Shapes, without the batch dimension, of the conditioning of a caption of usual length with a control image
        of this size, for the transformer of this diffusers config."""

    @abstractmethod
    def two_blocks(self) -> list[dict[str, int]]:
        """For each kind of block, what in the diffusers config makes a transformer of two of them."""

    @abstractmethod
    def modulation_layers(self) -> str:
        """A regular expression of the full names of the Linears that see nothing but the embedding of the timestep,
        the guidance and the pooled text: one vector for each example, the same for every token."""

    @abstractmethod
    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        """The caption of the second pass of classifier-free guidance, None where the family has no second pass."""

    @abstractmethod
    def combine_guidance(self, positive: torch.Tensor, negative: torch.Tensor, guidance: float) -> torch.Tensor:
        """Classifier-free guidance of two velocities, as the pipeline combines them."""
