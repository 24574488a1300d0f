"""Black Forest Labs' layout of Flux, which ComfyUI's files have, beside diffusers' names."""

from __future__ import annotations

from typing import Any

from .layout import AXES, HEAD_SIZE, Shapes, Stack, count_blocks

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


def flux_layout(double_blocks: int, single_blocks: int, guidance: bool) -> list[Stack]:
    """Every module of a Flux transformer with this many blocks, with or without a guidance embedding."""
    stacks = [
        Stack(stored, (module,))
        for stored, module in _EMBEDDERS.items()
        if guidance or not stored.startswith("guidance_in")
    ]
    # BFL's final layer computes (shift, scale), diffusers' (scale, shift).
    stacks.append(Stack("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True))
    for index in range(double_blocks):
        stacks += _double_block(f"double_blocks.{index}", f"transformer_blocks.{index}")
    for index in range(single_blocks):
        stacks += _single_block(f"single_blocks.{index}", f"single_transformer_blocks.{index}")
    return stacks


def _double_block(stored: str, block: str) -> list[Stack]:
    added = ("add_q_proj", "add_k_proj", "add_v_proj")
    return [
        Stack(f"{stored}.img_mod.lin", (f"{block}.norm1.linear",)),
        Stack(f"{stored}.txt_mod.lin", (f"{block}.norm1_context.linear",)),
        Stack(f"{stored}.img_attn.qkv", tuple(f"{block}.attn.{name}" for name in _QKV)),
        Stack(f"{stored}.txt_attn.qkv", tuple(f"{block}.attn.{name}" for name in added)),
        Stack(f"{stored}.img_attn.norm.query_norm", (f"{block}.attn.norm_q",), weight="scale"),
        Stack(f"{stored}.img_attn.norm.key_norm", (f"{block}.attn.norm_k",), weight="scale"),
        Stack(f"{stored}.txt_attn.norm.query_norm", (f"{block}.attn.norm_added_q",), weight="scale"),
        Stack(f"{stored}.txt_attn.norm.key_norm", (f"{block}.attn.norm_added_k",), weight="scale"),
        Stack(f"{stored}.img_attn.proj", (f"{block}.attn.to_out.0",)),
        Stack(f"{stored}.txt_attn.proj", (f"{block}.attn.to_add_out",)),
        Stack(f"{stored}.img_mlp.0", (f"{block}.ff.net.0.proj",)),
        Stack(f"{stored}.img_mlp.2", (f"{block}.ff.net.2",)),
        Stack(f"{stored}.txt_mlp.0", (f"{block}.ff_context.net.0.proj",)),
        Stack(f"{stored}.txt_mlp.2", (f"{block}.ff_context.net.2",)),
    ]


def _single_block(stored: str, block: str) -> list[Stack]:
    return [
        Stack(f"{stored}.modulation.lin", (f"{block}.norm.linear",)),
        Stack(f"{stored}.linear1", (*(f"{block}.attn.{name}" for name in _QKV), f"{block}.proj_mlp")),
        Stack(f"{stored}.linear2", (f"{block}.proj_out",)),
        Stack(f"{stored}.norm.query_norm", (f"{block}.attn.norm_q",), weight="scale"),
        Stack(f"{stored}.norm.key_norm", (f"{block}.attn.norm_k",), weight="scale"),
    ]


def flux_config(shapes: Shapes) -> dict[str, Any]:
    """diffusers' config of the Flux transformer with these tensors. Raises KeyError where one is missing that every
    Flux has."""
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
