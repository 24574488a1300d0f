"""Qwen-Image-Edit: what QwenImageEditPipeline does, taken apart for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, ProcessorMixin, Qwen2Tokenizer, Qwen2VLProcessor

from ..data.resize import Size, at_area_of
from ..single_file.key_mapping import AXES, HEAD_SIZE, Layout, Shapes, count_blocks, same_names
from . import CONFIGS
from .comfyui_parity import ComfyQwenRope, area_resized, cut_to_latents, padded_to_patches
from .diffusers_family import VAE_SCALE, PipelineCodec, PipelineFamily, PipelineTextEncoder, any_of, to_pil
from .qwen_single_file import TEXT_ENCODERS, TOKENIZERS, VAE
from .types import ImageCodec, PackedLatents, TextConditioning, Variant

SIDE_STEP = 32
"""Pixels: `calculate_dimensions` makes sides multiples of it."""


VISION_TOKEN = 28
"""Pixels along the side of what Qwen2.5-VL sees as one token."""


CAPTION_TOKENS = 128
"""Of the caption and the template around it, usually fewer."""


FULL = Variant(resolution=1024, max_sample_resolution=2048, text_length=512, sample_steps=20, sample_guidance=4.0)


TINY = Variant(resolution=64, max_sample_resolution=64, text_length=32, sample_steps=10, sample_guidance=1.0)


class QwenImageEdit(PipelineFamily):
    """Text: `prompt_embeds` [B, tokens, width] of Qwen2.5-VL, which reads the caption and the control image; with
    padding, also `prompt_embeds_mask`, bool [B, tokens], True at the tokens that count."""

    name = "qwen-image-edit"
    text_sees_control = True
    variants: ClassVar = {"Qwen/Qwen-Image-Edit": FULL, "tiny/qwen-image-edit": TINY}
    parts: ClassVar = {
        "transformer": ("transformer",),
        "vae": ("vae",),
        "text": ("text_encoder", "tokenizer", "processor"),
    }
    pipeline_class = "QwenImageEditPipeline"
    pipeline = QwenImageEditPipeline
    transformer = QwenImageTransformer2DModel
    kind = "qwen-image"
    name_hint = "edit"
    lookalike_names = "2509|2511|2512|layered|plus"
    text_encoders: ClassVar = TEXT_ENCODERS
    tokenizers: ClassVar = TOKENIZERS
    vae_file = VAE

    def empty_transformer(self, config: Mapping[str, Any]) -> QwenImageTransformer2DModel:
        transformer = super().empty_transformer(config)
        # Its tables of rotations are neither parameters nor buffers: no weights file fills them in.
        transformer.pos_embed = self._rope(config)
        return transformer

    def _rope(self, config: Mapping[str, Any]) -> QwenEmbedRope:
        kind = ComfyQwenRope if self.policy == "comfyui" else QwenEmbedRope
        return kind(10000, list(config["axes_dims_rope"]), scale_rope=True)

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        width, tokens = shapes["img_in.weight"]
        return {
            "patch_size": 2,
            "in_channels": tokens,
            "out_channels": shapes["proj_out.weight"][0] // 4,
            "num_layers": count_blocks(shapes, "transformer_blocks"),
            "attention_head_dim": HEAD_SIZE,
            "num_attention_heads": width // HEAD_SIZE,
            "joint_attention_dim": shapes["txt_in.weight"][1],
            "axes_dims_rope": AXES,
        }

    def layout(self, transformer: QwenImageTransformer2DModel) -> Layout:
        return same_names(transformer)

    def other_model(self, shapes: Shapes) -> str | None:
        if any(name.endswith("__index_timestep_zero__") for name in shapes):
            return "Qwen-Image-Edit-2511, which sees its control images in another way"
        if "time_text_embed.addition_t_embedding.weight" in shapes:
            return "Qwen-Image-Layered"
        return None

    def load_text_encoder(
        self,
        folder: Path | None,
        device: torch.device | str,
        dtype: torch.dtype,
        fingerprint: str,
        loaded: Mapping[str, Any] | None = None,
    ) -> QwenTextEncoder:
        loaded = dict(loaded or {})
        tokenizer = loaded.get("tokenizer")
        loaded["processor"] = processor_of(tokenizer) if tokenizer else load_processor(folder)
        return QwenTextEncoder(self.text_pipeline(folder, dtype, **loaded), device, fingerprint)

    def codec_of(self, vae: torch.nn.Module, device: torch.device | str, fingerprint: str) -> QwenCodec:
        return QwenCodec(vae, device, fingerprint)

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        inference = Size(self.variant.resolution, self.variant.resolution)
        area = target if control_resolution == "target" else inference
        if self.policy == "comfyui":
            return _at_least(at_area_of(control, area, 1), VAE_SCALE)
        return _at_area(control, area.width * area.height)

    def target_size(self, target: Size, resolution: int) -> Size:
        return _at_area(target, resolution**2)

    def prepare_control(self, image: Image.Image, size: Size) -> torch.Tensor:
        if self.policy == "comfyui":
            return area_resized(image, size)
        return super().prepare_control(image, size)

    def encode(self, codec: ImageCodec, image: torch.Tensor) -> torch.Tensor:
        # Only ComfyUI's control has sides that are no multiples: the text encoder sees it whole, the VAE its middle.
        return super().encode(codec, cut_to_latents(image, VAE_SCALE))

    def pack(self, latents: torch.Tensor) -> PackedLatents:
        return super().pack(padded_to_patches(latents))

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._per_channel("latents_mean", latents)) / self._per_channel("latents_std", latents)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        # Division by the reciprocal, not a product: the pipeline's rounding.
        return latents / (1.0 / self._per_channel("latents_std", latents)) + self._per_channel("latents_mean", latents)

    def _per_channel(self, statistic: str, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.vae_config[statistic]).view(1, -1, 1, 1).to(like.device, like.dtype)

    def collate_text(self, texts: Sequence[TextConditioning]) -> TextConditioning:
        prompts = [text["prompt_embeds"][0] for text in texts]
        batch = {"prompt_embeds": pad_sequence(prompts, batch_first=True)}
        lengths = [len(prompt) for prompt in prompts]
        if min(lengths) < max(lengths):
            kept = [torch.ones(length, dtype=torch.bool, device=prompts[0].device) for length in lengths]
            batch["prompt_embeds_mask"] = pad_sequence(kept, batch_first=True)
        return batch

    def predict(
        self,
        transformer: torch.nn.Module,
        noisy: PackedLatents,
        controls: Sequence[PackedLatents],
        text: TextConditioning,
        sigma: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        tokens = noisy.tokens
        images = [noisy, *controls]
        return transformer(
            hidden_states=torch.cat([image.tokens for image in images], dim=1),
            # The pipeline goes through the scheduler's 0..1000 and the latents' dtype, and so do these roundings.
            timestep=(sigma * 1000).to(tokens.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_hidden_states_mask=text.get("prompt_embeds_mask"),
            img_shapes=[[(1, *image.grid) for image in images]] * tokens.shape[0],
            return_dict=False,
        )[0][:, : tokens.shape[1]]

    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        # The last block's text output is thrown away: what only that output depends on cannot learn.
        last = transformer.config.num_layers - 1
        every, but_last = r"transformer_blocks\.\d+\.", rf"transformer_blocks\.(?!{last}\.)\d+\."
        targets = [
            rf"{every}attn\.{any_of('to_q', 'to_k', 'to_v', 'to_out.0', 'add_k_proj', 'add_v_proj')}",
            rf"{but_last}attn\.{any_of('add_q_proj', 'to_add_out')}",
        ]
        if which != "attention":
            layers = any_of("0.proj", "2")
            targets += [rf"{every}img_mlp\.net\.{layers}", rf"{but_last}txt_mlp\.net\.{layers}"]
        if which == "all-linear":
            targets += [rf"{every}{any_of('img_mod', 'txt_mod')}\.1"]
        return "|".join(targets)

    def idle_layers(self, transformer: torch.nn.Module) -> str:
        last = rf"transformer_blocks\.{transformer.config.num_layers - 1}\."
        return rf"{last}(attn\.{any_of('add_q_proj', 'to_add_out')}|txt_mlp\.net\.{any_of('0.proj', '2')})"

    def text_shapes(self, config: Mapping[str, Any], control: Size) -> dict[str, tuple[int, ...]]:
        image_tokens = control.width * control.height // VISION_TOKEN**2
        return {"prompt_embeds": (image_tokens + CAPTION_TOKENS, config["joint_attention_dim"])}

    def two_blocks(self) -> list[dict[str, int]]:
        return [{"num_layers": 2}]

    def modulation_layers(self) -> str:
        return rf"transformer_blocks\.\d+\.{any_of('img_mod', 'txt_mod')}\.1|norm_out\.linear"

    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        if guidance <= 1:
            return None
        return "" if self.policy == "comfyui" else " "

    def combine_guidance(self, positive: torch.Tensor, negative: torch.Tensor, guidance: float) -> torch.Tensor:
        combined = negative + guidance * (positive - negative)
        norms = [torch.norm(velocity, dim=-1, keepdim=True) for velocity in (positive, combined)]
        return combined * (norms[0] / norms[1])


class QwenTextEncoder(PipelineTextEncoder):
    """Qwen2.5-VL under the pipeline's template, with the control image in the prompt."""

    @torch.no_grad()
    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        (control,) = controls
        prompt, _ = self.pipeline.encode_prompt(caption, image=to_pil(control), device=self.device)
        return {"prompt_embeds": prompt}


class QwenCodec(PipelineCodec):
    """A video VAE whose frame axis, always 1 for images, stays inside."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels.unsqueeze(2)).squeeze(2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(latents.unsqueeze(2)).squeeze(2)

    def for_batches(self) -> QwenCodec | None:
        # While it encodes it keeps frames in itself, which forbids a second thread; on the CPU those are the batches.
        return None if self.module.device.type == "cpu" else self


class ImageTextProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without its video processor, which needs torchvision, and not every release of it will do."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None) -> None:
        for kind in ("image", "video"):
            token = f"<|{kind}_pad|>"
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(folder: Path) -> Qwen2VLProcessor:
    """The pipeline's processor of text and images."""
    return ImageTextProcessor.from_pretrained(folder / "processor", local_files_only=True)


def processor_of(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """The published model's processor with this tokenizer."""
    folder = CONFIGS / QwenImageEdit.name / "processor"
    return ImageTextProcessor(AutoImageProcessor.from_pretrained(folder, local_files_only=True), tokenizer)


def _at_area(image: Size, area: int) -> Size:
    """The pipeline's size for an image, but never without a side, which its rounding makes of extreme strips."""
    width, height, _ = calculate_dimensions(area, image.width / image.height)
    return _at_least(Size(width, height), SIDE_STEP)


def _at_least(size: Size, side: int) -> Size:
    return Size(max(side, size.width), max(side, size.height))
