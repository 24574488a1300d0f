"""FLUX.2 [klein]: the steps of diffusers' Flux2KleinPipeline, separated for training, and those of ComfyUI 0.33's
templates for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2KleinPipeline, Flux2Transformer2DModel, ModelMixin
from diffusers.models.transformers import transformer_flux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image

from ..blocks.flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from ..data.resize import Size, cut_to_multiples
from ..families.records import FLUX2_KLEIN
from ..single_file.key_mapping import Layout, Shapes
from .captions import ChatTokenizer
from .diffusers_family import PipelineCodec, PipelineTextEncoder, any_of, config_of, image_processor
from .flux2_single_file import TEXT_ENCODERS, TOKENIZERS, VAE, flux2_config, flux2_layout
from .flux_family import FluxFamily
from .pipeline_folder import variant_of
from .types import Grid, PackedLatents, TextConditioning

SMALLEST_SIDE, LARGEST_ASPECT = 64 / 1024, 8
"""Smallest side of a control image, in units of the side of the model's area, and its largest aspect ratio. Source:
Flux2ImageProcessor's check_image_input, which the pipeline calls."""


TEMPLATE_START = 3
"""Tokens of the chat template before the caption."""


class Flux2Klein(FluxFamily):
    """FLUX.2 [klein] under diffusers' policy: images are never enlarged, only shrunk to the model's area, and cut to
    whole tokens.

    Text conditioning: `prompt_embeds` [B, text_length, width] of three layers of Qwen3, padded and unmasked as the
    model was trained. Latents are the VAE's of 2 x 2 pixels as channels, normalized by its batch norm.
    """

    info = FLUX2_KLEIN
    pipeline = Flux2KleinPipeline
    latent_step = 16
    transformer = Flux2Transformer2DModel
    blocks: ClassVar = {
        transformer_flux2.Flux2TransformerBlock: Flux2TransformerBlock,
        transformer_flux2.Flux2SingleTransformerBlock: Flux2SingleTransformerBlock,
    }
    text_encoders: ClassVar = TEXT_ENCODERS
    tokenizers: ClassVar = TOKENIZERS
    counted_tokenizer = "tokenizer"
    vae_file = VAE

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        return flux2_config(shapes)

    def layout(self, transformer: torch.nn.Module) -> Layout:
        config = config_of(transformer)
        return flux2_layout(config["num_layers"], config["num_single_layers"])

    def other_model(self, shapes: Shapes) -> str | None:
        if "guidance_in.in_layer.weight" in shapes:
            return "FLUX.2 [dev], whose text encoder is another one; klein alone can be trained"
        if "img_in.weight" not in shapes or "txt_in.weight" not in shapes:
            return None
        found = variant_of(self.info, flux2_config(shapes), self.variant.name)
        return f"{found.name}; choose that as base_model" if found not in (None, self.variant) else None

    def wrap_text_encoder(
        self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str
    ) -> KleinTextEncoder:
        assert isinstance(pipeline, Flux2KleinPipeline)
        return KleinTextEncoder(pipeline, device, fingerprint, self.variant.text_length)

    def wrap_vae(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> KleinCodec:
        return KleinCodec(vae, device, fingerprint)

    # sizes and images

    def resized(self, image: Size, area: int) -> Size:
        """Size to which an image is resized before it is cut to whole tokens."""
        if image.width * image.height <= area:
            return image
        scale = math.sqrt(area / (image.width * image.height))
        return Size(int(image.width * scale), int(image.height * scale))

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        own = self.variant.resolution**2
        return self._cut(self.resized(control, target.width * target.height if control_resolution == "target" else own))

    def target_size(self, target: Size, resolution: int) -> Size:
        return self._cut(self.resized(target, resolution**2))

    def _cut(self, size: Size) -> Size:
        """The size of whole tokens within `size`, at least one."""
        return Size(*(max(self.patch, side // self.patch * self.patch) for side in size))

    def size_fault(self, size: Size) -> str | None:
        smallest = SMALLEST_SIDE * self.variant.resolution
        if min(size) < smallest:
            return f"it would have {size.width} x {size.height} pixels, but a side has at least {smallest:g}"
        # The pipeline looks at the image before it is cut, which has up to a token more.
        if max(size) > LARGEST_ASPECT * (min(size) + self.patch):
            return (
                f"it would have {size.width} x {size.height} pixels, but a side may be at most {LARGEST_ASPECT} times "
                "as long as the other"
            )
        return None

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        own = Size(*image.size)
        resized = self.resized(own, self.variant.resolution**2)
        if self._cut(resized) != size or not _covers(resized, size):
            factor = max(size.width / own.width, size.height / own.height)
            resized = Size(math.ceil(own.width * factor), math.ceil(own.height * factor))
        return self.to_pixels(image if resized == own else image.resize(resized, Image.Resampling.LANCZOS), size)

    def to_pixels(self, image: Image.Image, size: Size) -> torch.Tensor:
        """Cut the centre of `size` from an RGB image that is at least as large: [1, 3, H, W] float32 in 0..1."""
        left, top = (image.width - size.width) // 2, (image.height - size.height) // 2
        cut = image.crop((left, top, left + size.width, top + size.height))
        return image_processor(self.patch).preprocess(cut, size.height, size.width)

    # latents

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents  # the codec has, as ComfyUI's VAE, because only it knows the batch norm's statistics

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def pack(self, latents: torch.Tensor) -> PackedLatents:
        return PackedLatents(Flux2KleinPipeline._pack_latents(latents), Grid(*latents.shape[-2:]))

    def unpack(self, packed: PackedLatents) -> torch.Tensor:
        return packed.tokens.transpose(1, 2).unflatten(2, tuple(packed.grid)).contiguous()

    # text

    def caption_length(self) -> int | None:
        return self.variant.text_length - TEMPLATE_START

    def text_shapes(self, config: Mapping[str, Any], controls: Sequence[Size]) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (max(self.variant.text_length, self.longest_caption), config["joint_attention_dim"])}

    # the model

    def predict(
        self,
        transformer: torch.nn.Module,
        noisy: PackedLatents,
        controls: Sequence[PackedLatents],
        text: TextConditioning,
        sigma: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        tokens, prompt = noisy.tokens, text["prompt_embeds"]
        images = [noisy, *controls]
        device = tokens.device
        return transformer(
            hidden_states=torch.cat([image.tokens for image in images], dim=1),
            # Rounded as in the pipeline, where timesteps pass through 0..1000 in the latents' dtype.
            timestep=(sigma * 1000).to(tokens.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=prompt,
            txt_ids=_positions(0, (1, 1), prompt.shape[1], device),
            img_ids=torch.cat([_positions(10 * index, image.grid, 1, device) for index, image in enumerate(images)], 1),
            return_dict=False,
        )[0][:, : tokens.shape[1]]

    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        # The blocks share three modulation layers, of which ComfyUI has no name in a LoRA.
        double, single = r"transformer_blocks\.\d+\.", r"single_transformer_blocks\.\d+\."
        joint = any_of("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        targets = [rf"{double}attn\.{joint}", rf"{single}attn\.{any_of('to_qkv_mlp_proj', 'to_out')}"]
        if which != "attention":
            targets += [rf"{double}{any_of('ff', 'ff_context')}\.{any_of('linear_in', 'linear_out')}"]
        return "|".join(targets)

    def few_blocks(self, count: int) -> list[dict[str, int]]:
        return [{"num_layers": count, "num_single_layers": 0}, {"num_layers": 0, "num_single_layers": count}]

    def modulation_layers(self) -> str:
        return ""  # the blocks share theirs, so there is little to offload

    def shift(self, scheduler: Mapping[str, Any], tokens: int, steps: int) -> float:
        return compute_empirical_mu(tokens, steps)

    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        return "" if guidance > 1 else None


class ComfyFlux2Klein(Flux2Klein):
    """FLUX.2 [klein] after ComfyUI's templates: every image is scaled to the model's area by ImageScaleToTotalPixels
    with Lanczos, smaller ones too, and VAEEncode cuts it to whole tokens."""

    policy = "comfyui"

    def caption_length(self) -> int | None:
        return None  # ComfyUI cuts no text off

    def resized(self, image: Size, area: int) -> Size:
        scale = math.sqrt(area / (image.width * image.height))
        return Size(max(1, round(image.width * scale)), max(1, round(image.height * scale)))

    def size_fault(self, size: Size) -> str | None:
        return None

    def to_pixels(self, image: Image.Image, size: Size) -> torch.Tensor:
        box = cut_to_multiples(Size(*image.size), self.patch)
        if (box.right - box.left, box.bottom - box.top) != size:
            return super().to_pixels(image, size)
        # In ComfyUI's memory layout, on which the rounding of a convolution depends.
        return image_processor(self.patch).preprocess(image.crop(box), size.height, size.width).contiguous()


class KleinTextEncoder(PipelineTextEncoder):
    """Qwen3 in the pipeline's chat template; the control images are not part of the text conditioning."""

    def __init__(
        self, pipeline: Flux2KleinPipeline, device: torch.device | str, fingerprint: str, text_length: int
    ) -> None:
        # Encoding takes hidden states; the words that would follow are not computed.
        pipeline.text_encoder.lm_head = torch.nn.Identity()
        super().__init__(pipeline, device, fingerprint)
        pipeline.register_modules(tokenizer=ChatTokenizer(pipeline.tokenizer))
        self.pipeline = pipeline
        self.text_length = text_length

    @torch.no_grad()
    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption to `prompt_embeds` [1, text_length, width] in the encoder's dtype; `controls`,
        [1, 3, H, W] float32, are ignored."""
        prompt, _ = self.pipeline.encode_prompt(caption, device=self.device, max_sequence_length=self.text_length)
        return {"prompt_embeds": prompt}


class KleinCodec(PipelineCodec):
    """The VAE with its batch norm: latents are normalized, with 2 x 2 latent pixels as channels, as ComfyUI's VAE gives
    them."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, H, W] float32 in -1..1 to normalized latents [B, 4 * C, H/16, W/16] in the VAE's dtype."""
        latents = Flux2KleinPipeline._patchify_latents(super().encode(pixels))
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode normalized [B, 4 * C, h, w] of any float dtype to [B, 3, 16h, 16w] in -1..1 in the VAE's dtype."""
        mean, deviation = self._statistics(latents)
        return super().decode(Flux2KleinPipeline._unpatchify_latents(latents * deviation + mean))

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the channels, [1, 4 * C, 1, 1] on the device and in the dtype of `like`."""
        vae = self.module
        assert isinstance(vae, AutoencoderKLFlux2)
        assert vae.bn.running_mean is not None and vae.bn.running_var is not None
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config["batch_norm_eps"])
        return mean.to(like.device, like.dtype), deviation.to(like.device, like.dtype)


def _positions(image: int, grid: tuple[int, int], length: int, device: torch.device) -> torch.Tensor:
    """Positions [1, rows * columns * length, 4] int64: image, row, column, and place in the text."""
    with device:  # the host would wait for a copy in every pass
        axes = [torch.arange(image, image + 1), *(torch.arange(side) for side in (*grid, length))]
        return torch.cartesian_prod(*axes)[None]


def _covers(image: Size, size: Size) -> bool:
    return image.width >= size.width and image.height >= size.height
