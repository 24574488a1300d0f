"""Layouts of Qwen-Image's single files: VAE and text encoder."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLQwenImage
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from ..families.records import QWEN_IMAGE_EDIT
from ..single_file.key_mapping import Shapes, count_blocks
from ..single_file.text_encoder import EncoderFile
from ..single_file.tokenizer import Tokenizer
from ..single_file.vae import VaeFile

HEAD, VISION_HEAD = 128, 80
"""Channels of an attention head in the language model and in the vision encoder, the same in every Qwen2.5-VL."""


def _stored_name(name: str, shapes: Shapes) -> str:
    name = name.removeprefix("model.")
    return f"model.{name.removeprefix('language_model.')}" if name.startswith("language_model.") else name


def _config(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes["model.embed_tokens.weight"]
    layer, block = "model.layers.0", "visual.blocks.0"
    vision_width = shapes["visual.patch_embed.proj.weight"][0]
    return {
        "text_config": {
            "vocab_size": words,
            "hidden_size": width,
            "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"][0],
            "num_hidden_layers": count_blocks(shapes, "model.layers"),
            "num_attention_heads": shapes[f"{layer}.self_attn.q_proj.weight"][0] // HEAD,
            "num_key_value_heads": shapes[f"{layer}.self_attn.k_proj.weight"][0] // HEAD,
        },
        "vision_config": {
            "depth": count_blocks(shapes, "visual.blocks"),
            "hidden_size": vision_width,
            "num_heads": vision_width // VISION_HEAD,
            "intermediate_size": shapes[f"{block}.mlp.gate_proj.weight"][0],
            "out_hidden_size": width,
        },
    }


TEXT_ENCODERS = {
    "text_encoder": EncoderFile(
        info=QWEN_IMAGE_EDIT.text_encoders["text_encoder"],
        model=Qwen2_5_VLForConditionalGeneration,
        prefixes=("text_encoders.qwen25_7b.transformer.",),
        stored_name=_stored_name,
        config=_config,
        output_width=lambda shapes: shapes["model.embed_tokens.weight"][1],
        input_layer="txt_in.weight",
        tokenizer="tokenizer",
        token_ids={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        ignored_tensors=("lm_head.weight",),
        unused_modules=("lm_head",),
    )
}


TOKENIZERS = {"tokenizer": Tokenizer(Qwen2Tokenizer, "comfy/text_encoders/qwen25_tokenizer")}


VAE = VaeFile(
    info=QWEN_IMAGE_EDIT.vae,
    model=AutoencoderKLQwenImage,
    convert=lambda tensors, config: convert_wan_vae_to_diffusers(tensors),
    diffusers_name="encoder.conv_in.weight",
    config=lambda shapes: {"base_dim": shapes["encoder.conv_in.weight"][0]},
)
