"""The VAE and the text encoders of Flux as single files."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .layout import Shapes, count_blocks
from .text_files import EncoderFile
from .tokenizers import Tokenizer
from .vae_files import VaeFile

CLIP_HEAD = 64
"""Channels of an attention head, the same in every CLIP."""
T5_EMBEDDINGS = ("shared", "encoder.embed_tokens")
"""One table of words, which files name so, or so, or write twice."""


def _clip_config(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": count_blocks(shapes, "encoder.layers"),
        "num_attention_heads": width // CLIP_HEAD,
    }


def _t5_embedding(shapes: Shapes) -> str:
    return next((name for name in T5_EMBEDDINGS if f"{name}.weight" in shapes), T5_EMBEDDINGS[0])


def _t5_config(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes[f"{_t5_embedding(shapes)}.weight"]
    first = "encoder.block.0.layer"
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "num_heads": heads,
        "num_layers": count_blocks(shapes, "encoder.block"),
        "relative_attention_num_buckets": buckets,
    }


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    levels = range(count_blocks(shapes, "encoder.down_blocks"))
    widths = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    return {"block_out_channels": widths}


TEXT_ENCODERS = {
    "text_encoder": EncoderFile(
        kind="clip",
        title="CLIP-L text encoder",
        model=CLIPTextModel,
        prefixes=("text_encoders.clip_l.transformer.text_model.", "text_model."),
        stored=lambda name, shapes: name.removeprefix("text_model."),
        config=_clip_config,
        width=lambda shapes: shapes["embeddings.token_embedding.weight"][1],
        feeds="vector_in.in_layer.weight",
        tokenizer="tokenizer",
        ignored=("embeddings.position_ids",),
    ),
    "text_encoder_2": EncoderFile(
        kind="t5",
        title="T5-XXL text encoder",
        model=T5EncoderModel,
        prefixes=("text_encoders.t5xxl.transformer.",),
        stored=lambda name, shapes: _t5_embedding(shapes) if name in T5_EMBEDDINGS else name,
        config=_t5_config,
        width=lambda shapes: shapes[f"{_t5_embedding(shapes)}.weight"][1],
        feeds="txt_in.weight",
        tokenizer="tokenizer_2",
        ignored=tuple(f"{name}.weight" for name in T5_EMBEDDINGS),
    ),
}
TOKENIZERS = {
    # ComfyUI's files say 8192, and the pipeline pads to what they say.
    "tokenizer": Tokenizer(CLIPTokenizer, "comfy/sd1_tokenizer", {"model_max_length": 77}),
    "tokenizer_2": Tokenizer(T5TokenizerFast, "comfy/text_encoders/t5_tokenizer"),
}
VAE = VaeFile(
    kind="image-vae",
    title="VAE of Flux",
    model=AutoencoderKL,
    prefixes=("first_stage_model.", "vae."),
    convert=convert_ldm_vae_checkpoint,
    own_name="encoder.down_blocks.0.resnets.0.conv1.weight",
    config=_vae_config,
)
