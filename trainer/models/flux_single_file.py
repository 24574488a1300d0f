"""Layouts of Flux's single files: transformer, VAE and text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ..families.records import FLUX_KONTEXT
from ..single_file.key_mapping import FusedModule, Shapes, count_blocks
from ..single_file.text_encoder import EncoderFile
from ..single_file.tokenizer import Tokenizer
from ..single_file.vae import VaeFile
from .diffusers_family import AXES, HEAD_SIZE

CLIP_HEAD = 64
"""Channels of an attention head, the same in every CLIP text encoder."""


T5_EMBEDDINGS = ("shared", "encoder.embed_tokens")
"""Names of the shared token embedding; files have one of them, or both."""


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


def level_widths(shapes: Shapes, blocks: str) -> list[int]:
    """Channels of each level of a VAE's encoder or decoder, by the name of its list of blocks."""
    return [shapes[f"{blocks}.{level}.resnets.0.conv1.weight"][0] for level in range(count_blocks(shapes, blocks))]


TEXT_ENCODERS = {
    "text_encoder": EncoderFile(
        info=FLUX_KONTEXT.text_encoders["text_encoder"],
        model=CLIPTextModel,
        prefixes=("text_encoders.clip_l.transformer.text_model.", "text_model."),
        stored_name=lambda name, shapes: name.removeprefix("text_model."),
        config=_clip_config,
        output_width=lambda shapes: shapes["embeddings.token_embedding.weight"][1],
        input_layer="vector_in.in_layer.weight",
        tokenizer="tokenizer",
        ignored_tensors=("embeddings.position_ids",),
    ),
    "text_encoder_2": EncoderFile(
        info=FLUX_KONTEXT.text_encoders["text_encoder_2"],
        model=T5EncoderModel,
        prefixes=("text_encoders.t5xxl.transformer.",),
        stored_name=lambda name, shapes: _t5_embedding(shapes) if name in T5_EMBEDDINGS else name,
        config=_t5_config,
        output_width=lambda shapes: shapes[f"{_t5_embedding(shapes)}.weight"][1],
        input_layer="txt_in.weight",
        tokenizer="tokenizer_2",
        ignored_tensors=tuple(f"{name}.weight" for name in T5_EMBEDDINGS),
    ),
}


TOKENIZERS = {
    # The pipeline pads to model_max_length, which is 8192 in ComfyUI's files.
    "tokenizer": Tokenizer(CLIPTokenizer, "comfy/sd1_tokenizer", {"model_max_length": 77}),
    "tokenizer_2": Tokenizer(T5Tokenizer, "comfy/text_encoders/t5_tokenizer"),
}


VAE = VaeFile(
    info=FLUX_KONTEXT.vae,
    model=AutoencoderKL,
    convert=convert_ldm_vae_checkpoint,
    diffusers_name="encoder.down_blocks.0.resnets.0.conv1.weight",
    config=lambda shapes: {"block_out_channels": level_widths(shapes, "encoder.down_blocks")},
)


_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


_QKV = ("to_q", "to_k", "to_v")


STREAMS = {
    "img": (_QKV, "to_out.0", "norm_q", "norm_k"),
    "txt": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_q", "norm_added_k"),
}
"""Modules of a double block's attention by stream: inputs, output and norms."""


BlockLayout = Callable[[str, str], list[FusedModule]]
"""Layout of a block, by its name in the file and in diffusers."""


def flux_layout(double_blocks: int, single_blocks: int, guidance: bool) -> list[FusedModule]:
    """The layout of a Flux transformer's single file with this many blocks, with or without guidance embedding."""
    embedders = {name: own for name, own in _EMBEDDERS.items() if guidance or not name.startswith("guidance_in")}
    return transformer_layout(embedders, (double_blocks, _double_block), (single_blocks, _single_block))


def transformer_layout(
    around: Mapping[str, str], double: tuple[int, BlockLayout], single: tuple[int, BlockLayout]
) -> list[FusedModule]:
    """The layout of a file in Black Forest Labs' naming: modules around the blocks by stored name, then number and
    layout of the double and of the single blocks."""
    layout = [FusedModule(stored, (module,)) for stored, module in around.items()]
    # The final layer is (shift, scale) in Black Forest Labs' files and (scale, shift) in diffusers.
    layout.append(FusedModule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True))
    for kind, (count, block) in {"": double, "single_": single}.items():
        for index in range(count):
            layout += block(f"{kind or 'double_'}blocks.{index}", f"{kind}transformer_blocks.{index}")
    return layout


def attention_layout(stored: str, block: str) -> list[FusedModule]:
    """The layout of a double block's attention."""
    layout = []
    for stream, (inputs, output, query_norm, key_norm) in STREAMS.items():
        layout += [
            FusedModule(f"{stored}.{stream}_attn.qkv", tuple(f"{block}.attn.{name}" for name in inputs)),
            FusedModule(f"{stored}.{stream}_attn.norm.query_norm", (f"{block}.attn.{query_norm}",), weight="scale"),
            FusedModule(f"{stored}.{stream}_attn.norm.key_norm", (f"{block}.attn.{key_norm}",), weight="scale"),
            FusedModule(f"{stored}.{stream}_attn.proj", (f"{block}.attn.{output}",)),
        ]
    return layout


def _double_block(stored: str, block: str) -> list[FusedModule]:
    return [
        FusedModule(f"{stored}.img_mod.lin", (f"{block}.norm1.linear",)),
        FusedModule(f"{stored}.txt_mod.lin", (f"{block}.norm1_context.linear",)),
        *attention_layout(stored, block),
        FusedModule(f"{stored}.img_mlp.0", (f"{block}.ff.net.0.proj",)),
        FusedModule(f"{stored}.img_mlp.2", (f"{block}.ff.net.2",)),
        FusedModule(f"{stored}.txt_mlp.0", (f"{block}.ff_context.net.0.proj",)),
        FusedModule(f"{stored}.txt_mlp.2", (f"{block}.ff_context.net.2",)),
    ]


def _single_block(stored: str, block: str) -> list[FusedModule]:
    return [
        FusedModule(f"{stored}.modulation.lin", (f"{block}.norm.linear",)),
        FusedModule(f"{stored}.linear1", (*(f"{block}.attn.{name}" for name in _QKV), f"{block}.proj_mlp")),
        FusedModule(f"{stored}.linear2", (f"{block}.proj_out",)),
        FusedModule(f"{stored}.norm.query_norm", (f"{block}.attn.norm_q",), weight="scale"),
        FusedModule(f"{stored}.norm.key_norm", (f"{block}.attn.norm_k",), weight="scale"),
    ]


def flux_config(shapes: Shapes) -> dict[str, Any]:
    """The diffusers config of a Flux transformer, from the shapes in its single file. Raises KeyError if a tensor is
    missing that every Flux has."""
    width, tokens = shapes["img_in.weight"]
    return {
        "patch_size": 1,
        "in_channels": tokens,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count_blocks(shapes, "double_blocks"),
        "num_single_layers": count_blocks(shapes, "single_blocks"),
        "attention_head_dim": HEAD_SIZE,
        "num_attention_heads": width // HEAD_SIZE,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": AXES,
    }
