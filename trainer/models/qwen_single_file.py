"""The VAE and the text encoder of Qwen-Image as single files."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLQwenImage
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from ..single_file.key_mapping import Shapes, count_blocks
from ..single_file.text_encoder import EncoderFile
from ..single_file.tokenizer import Tokenizer
from ..single_file.vae import VaeFile

HEAD, VISION_HEAD = 128, 80
"""Channels of an attention head, the same in every Qwen2.5-VL."""


def _stored(name: str, shapes: Shapes) -> str:
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
        kind="qwen2.5-vl",
        title="Qwen2.5-VL text encoder",
        model=Qwen2_5_VLForConditionalGeneration,
        prefixes=("text_encoders.qwen25_7b.transformer.",),
        stored=_stored,
        config=_config,
        width=lambda shapes: shapes["model.embed_tokens.weight"][1],
        feeds="txt_in.weight",
        tokenizer="tokenizer",
        tokens={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        ignored=("lm_head.weight",),
        unused=("lm_head",),
    )
}


TOKENIZERS = {"tokenizer": Tokenizer(Qwen2Tokenizer, "comfy/text_encoders/qwen25_tokenizer")}


VAE = VaeFile(
    kind="wan-vae",
    title="VAE of Qwen-Image",
    model=AutoencoderKLQwenImage,
    prefixes=("first_stage_model.", "vae."),
    convert=lambda tensors, config: convert_wan_vae_to_diffusers(tensors),
    own_name="encoder.conv_in.weight",
    lookalike_names="wan",
    config=lambda shapes: {"base_dim": shapes["encoder.conv_in.weight"][0]},
)
