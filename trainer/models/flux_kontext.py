"""FLUX.1 Kontext: the steps of diffusers' FluxKontextPipeline, separated for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from ..blocks.flux import FluxSingleTransformerBlock, FluxTransformerBlock
from ..data.resize import Size, at_area_of, nearest_aspect, scaled
from ..families.records import FLUX_KONTEXT
from ..single_file.key_mapping import Layout, Shapes
from .captions import TextTokenizer
from .diffusers_family import PipelineTextEncoder, any_of, config_of
from .flux_family import FluxFamily
from .flux_single_file import TEXT_ENCODERS, TOKENIZERS, VAE, flux_config, flux_layout
from .types import PackedLatents, TextConditioning

PREFERRED_SIZES = [Size(width, height) for width, height in PREFERRED_KONTEXT_RESOLUTIONS]


PREFERRED_RESOLUTION = 1024
"""Square root of the preferred sizes' area in pixels, which is about the same for all of them."""


class FluxKontext(FluxFamily):
    """FLUX.1 Kontext under diffusers' policy.

    Text conditioning: `prompt_embeds` [B, tokens, width] of T5, padded and unmasked as the model was trained, and
    `pooled_prompt_embeds` [B, width] of CLIP. diffusers pads to text_length, ComfyUI to 256; longer texts stay longer.
    """

    info = FLUX_KONTEXT
    pipeline = FluxKontextPipeline
    pack_latents = staticmethod(FluxKontextPipeline._pack_latents)
    unpack_latents = staticmethod(FluxKontextPipeline._unpack_latents)
    transformer = FluxTransformer2DModel
    blocks: ClassVar = {
        transformer_flux.FluxTransformerBlock: FluxTransformerBlock,
        transformer_flux.FluxSingleTransformerBlock: FluxSingleTransformerBlock,
    }
    aspect_step: ClassVar[int] = FluxFamily.patch
    """Pixels to whose multiples an image's sides are cut before its aspect ratio is compared with the preferred
    ones."""
    text_encoders: ClassVar = TEXT_ENCODERS
    tokenizers: ClassVar = TOKENIZERS
    counted_tokenizer = "tokenizer_2"
    vae_file = VAE

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        return flux_config(shapes)

    def layout(self, transformer: torch.nn.Module) -> Layout:
        config = config_of(transformer)
        return flux_layout(config["num_layers"], config["num_single_layers"], config["guidance_embeds"])

    def other_model(self, shapes: Shapes) -> str | None:
        channels = shapes.get("img_in.weight", (0, 64))[-1]
        if channels == 384:
            return "FLUX.1 Fill, which paints into masks"
        if channels == 128:
            return "FLUX.1 Canny or Depth, which follow a control picture"
        if "img_in.weight" in shapes and "guidance_in.in_layer.weight" not in shapes:
            return "FLUX.1 schnell or another Flux without a guidance embedding"
        return None

    def wrap_text_encoder(
        self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str
    ) -> FluxTextEncoder:
        assert isinstance(pipeline, FluxKontextPipeline)
        return FluxTextEncoder(pipeline, device, fingerprint, self.variant.text_length)

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        if control_resolution == "target":
            return at_area_of(self._preferred(control), target, self.patch)
        return self.target_size(control, self.variant.resolution)

    def target_size(self, target: Size, resolution: int) -> Size:
        return scaled(self._preferred(target), resolution / PREFERRED_RESOLUTION, self.patch)

    def caption_length(self) -> int | None:
        return self.variant.text_length

    def _preferred(self, image: Size) -> Size:
        return nearest_aspect(image, PREFERRED_SIZES, self.aspect_step)

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self.vae_config["shift_factor"]) * self.vae_config["scaling_factor"]

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.vae_config["scaling_factor"] + self.vae_config["shift_factor"]

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
        return transformer(
            hidden_states=torch.cat([image.tokens for image in images], dim=1),
            # Rounded as in the pipeline, where timesteps pass through 0..1000 in the latents' dtype.
            timestep=(sigma * 1000).to(tokens.dtype) / 1000,
            guidance=torch.full_like(sigma, guidance) if config_of(transformer)["guidance_embeds"] else None,
            pooled_projections=text["pooled_prompt_embeds"],
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=prompt.device, dtype=prompt.dtype),
            img_ids=torch.cat([_image_ids(image, index) for index, image in enumerate(images)]),
            return_dict=False,
        )[0][:, : tokens.shape[1]]

    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        double, single = r"transformer_blocks\.\d+\.", r"single_transformer_blocks\.\d+\."
        own = any_of("to_q", "to_k", "to_v")
        joint = any_of("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        targets = [rf"{double}attn\.{joint}", rf"{single}attn\.{own}"]
        if which != "attention":
            targets += [rf"{double}{any_of('ff', 'ff_context')}\.net\.{any_of('0.proj', '2')}"]
            targets += [rf"{single}{any_of('proj_mlp', 'proj_out')}"]
        if which == "all-linear":
            targets += [rf"{double}{any_of('norm1', 'norm1_context')}\.linear", rf"{single}norm\.linear"]
        return "|".join(targets)

    def text_shapes(self, config: Mapping[str, Any], controls: Sequence[Size]) -> dict[str, tuple[int, ...]]:
        return {
            "prompt_embeds": (self.variant.text_length, config["joint_attention_dim"]),
            "pooled_prompt_embeds": (config["pooled_projection_dim"],),
        }

    def few_blocks(self, count: int) -> list[dict[str, int]]:
        return [{"num_layers": count, "num_single_layers": 0}, {"num_layers": 0, "num_single_layers": count}]

    def modulation_layers(self) -> str:
        return (
            rf"transformer_blocks\.\d+\.{any_of('norm1', 'norm1_context')}\.linear"
            r"|single_transformer_blocks\.\d+\.norm\.linear|norm_out\.linear"
        )

    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        return None


class FluxTextEncoder(PipelineTextEncoder):
    """CLIP and T5; the control image is not part of the text conditioning."""

    def __init__(
        self, pipeline: FluxKontextPipeline, device: torch.device | str, fingerprint: str, text_length: int
    ) -> None:
        super().__init__(pipeline, device, fingerprint)
        tokenizers = {name: TextTokenizer(getattr(pipeline, name)) for name in ("tokenizer", "tokenizer_2")}
        pipeline.register_modules(**tokenizers)
        self.pipeline = pipeline
        self.text_length = text_length

    @torch.no_grad()
    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption to `prompt_embeds` [1, text_length, width] and `pooled_prompt_embeds` [1, width] in the
        encoders' dtype; `controls`, [1, 3, H, W] float32, are ignored."""
        prompt, pooled, _ = self.pipeline.encode_prompt(
            caption, device=self.device, max_sequence_length=self.text_length
        )
        assert prompt is not None and pooled is not None, "the pipeline has a T5 and a CLIP"
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}


def _image_ids(image: PackedLatents, index: int) -> torch.Tensor:
    """Position ids [tokens, 3] in the tokens' dtype: image index (0 is the target), row, column."""
    tokens = image.tokens
    with tokens.device:  # the pipeline makes them on the CPU, and the host would wait for the copy in every pass
        ids = FluxKontextPipeline._prepare_latent_image_ids(1, *image.grid, tokens.device, tokens.dtype)
    ids[..., 0] = index
    return ids
