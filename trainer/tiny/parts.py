"""Transformers, schedulers and pipelines of the embedded models, written as diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .encoders import TEXT_WIDTH, clip_encoder, qwen3_encoder, qwen_encoder, t5_encoder
from .tokenizers import clip_tokenizer, klein_tokenizer, qwen_tokenizer, t5_tokenizer
from .vae import LATENT_CHANNELS, flux2_vae, flux_vae, qwen_vae

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


FAMILIES: tuple[str, ...] = ("flux-kontext", "qwen-image-edit", "qwen-image-edit-plus", "flux2-klein")
"""Names of the folders; with `tiny/` in front, of the base models."""


TOKEN_CHANNELS = 4 * LATENT_CHANNELS


def flux_transformer() -> FluxTransformer2DModel:
    """Build a Flux transformer with the real head size and rope axes, by which its weights are detected."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=TOKEN_CHANNELS,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )


def qwen_transformer() -> QwenImageTransformer2DModel:
    """Build a Qwen-Image transformer of double-stream blocks."""
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=TOKEN_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
    )


def flux2_transformer() -> Flux2Transformer2DModel:
    """Build a FLUX.2 transformer without guidance embedding, with the real head size."""
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=TOKEN_CHANNELS,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=3 * TEXT_WIDTH // 2,
        axes_dims_rope=(32, 32, 32, 32),
        guidance_embeds=False,
    )


def flux_pipeline(seed: int) -> DiffusionPipeline:
    """Build a Kontext pipeline with an untrained VAE and transformer."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(seed)
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            shift=3.0,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=flux_vae(),
        text_encoder=clip_encoder(clip, seed),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5, seed),
        tokenizer_2=t5,
        transformer=flux_transformer(),
    )


def qwen_pipeline(seed: int) -> DiffusionPipeline:
    """Build a Qwen-Image-Edit pipeline with an untrained VAE and transformer."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from ..models.qwen_processor import ImageTextProcessor

    tokenizer = qwen_tokenizer()
    torch.manual_seed(seed)
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            shift=1.0,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
        vae=qwen_vae(),
        text_encoder=qwen_encoder(tokenizer, seed),
        tokenizer=tokenizer,
        processor=ImageTextProcessor(Qwen2VLImageProcessorPil(), tokenizer),
        transformer=qwen_transformer(),
    )


def klein_pipeline(seed: int) -> DiffusionPipeline:
    """Build a FLUX.2 [klein] pipeline with an untrained VAE and transformer."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    from ..models.flux2_single_file import CHAT_TEMPLATE

    tokenizer = klein_tokenizer(CHAT_TEMPLATE)
    torch.manual_seed(seed)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_vae(flux_vae()),
        text_encoder=qwen3_encoder(tokenizer, seed),
        tokenizer=tokenizer,
        transformer=flux2_transformer(),
    )


def write_parts(family: str, folder: Path, seed: int) -> None:
    """Write a complete untrained model of the family as a diffusers folder in float16."""
    make = {"flux-kontext": flux_pipeline, "qwen-image-edit": qwen_pipeline, "flux2-klein": klein_pipeline}
    pipeline = make[family](seed)
    pipeline.to(torch.float16).save_pretrained(folder)
    if family == "qwen-image-edit":
        _name_plain_processor(folder)


def write_parts_beside(complete: Path, folder: Path) -> None:
    """Write what a tiny Qwen-Image-Edit-2511 has of its own; it shares the rest with the tiny Qwen-Image-Edit in the
    folder `complete`, from whose trained transformer its own begins."""
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel.from_pretrained(
        complete, subfolder="transformer", local_files_only=True, zero_cond_t=True
    )
    write_part(transformer, folder / "transformer")
    index = json.loads((complete / "model_index.json").read_text(encoding="utf-8"))
    _write_json(folder / "model_index.json", index | {"_class_name": "QwenImageEditPlusPipeline"})


def write_part(module: ModelMixin, folder: Path) -> None:
    """Write a trained part in float16, without the path that it was loaded from."""
    module.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _write_json(folder / "config.json", config)


def _name_plain_processor(folder: Path) -> None:
    """Describe the processor as the real model does: a Qwen2VLProcessor with its image and its video half in a file
    each, whichever halves the machine that made it could load."""
    half = json.loads((folder / "processor" / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    (folder / "processor" / "processor_config.json").unlink()
    image = {**half, "processor_class": "Qwen2VLProcessor"}
    video = {**image, "video_processor_type": "Qwen2VLVideoProcessor"}
    del video["image_processor_type"]
    _write_json(folder / "processor" / "preprocessor_config.json", image)
    _write_json(folder / "processor" / "video_preprocessor_config.json", video)
    for path, key, value in (
        (folder / "processor" / "tokenizer_config.json", "processor_class", "Qwen2VLProcessor"),
        (folder / "model_index.json", "processor", ["transformers", "Qwen2VLProcessor"]),
    ):
        _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), key: value})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
