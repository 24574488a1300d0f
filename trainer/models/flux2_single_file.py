"""Layouts of FLUX.2 [klein]'s single files: transformer, VAE and text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from ..families.records import FLUX2_KLEIN
from ..single_file.key_mapping import FusedModule, Shapes, count_blocks
from ..single_file.text_encoder import EncoderFile
from ..single_file.tokenizer import Tokenizer
from ..single_file.vae import VaeFile
from .flux_single_file import attention_layout, level_widths, transformer_layout

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)
"""Chat template that formats the pipeline's one message as Qwen3's own does without thinking. The tokenizer in
ComfyUI's files has Qwen2.5's."""


TEXT_LAYERS = 3
"""Layers of the text encoder whose hidden states are joined. Source: Flux2KleinPipeline and ComfyUI's text encoder."""


def _text_config(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes["model.embed_tokens.weight"]
    layer = "model.layers.0"
    (head,) = shapes[f"{layer}.self_attn.q_norm.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_blocks(shapes, "model.layers"),
        "head_dim": head,
        "num_attention_heads": shapes[f"{layer}.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{layer}.self_attn.k_proj.weight"][0] // head,
    }


TEXT_ENCODERS = {
    "text_encoder": EncoderFile(
        info=FLUX2_KLEIN.text_encoders["text_encoder"],
        model=Qwen3ForCausalLM,
        prefixes=("text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer."),
        stored_name=lambda name, shapes: name,
        config=_text_config,
        output_width=lambda shapes: TEXT_LAYERS * shapes["model.embed_tokens.weight"][1],
        input_layer="txt_in.weight",
        tokenizer="tokenizer",
        ignored_tensors=("lm_head.weight",),
        unused_modules=("lm_head",),
    )
}


TOKENIZERS = {
    "tokenizer": Tokenizer(Qwen2Tokenizer, "comfy/text_encoders/qwen25_tokenizer", {"chat_template": CHAT_TEMPLATE})
}


def _convert_vae(tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename tensors of any shape and dtype to diffusers' names; dtypes and shapes stay, except that the attention's
    1 x 1 convolutions become matrices."""
    names = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
    for stored, own in names.items():
        tensors = {name.replace(stored, own): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    # Only training counts batches.
    kept.setdefault("bn.num_batches_tracked", torch.zeros((), device=kept["bn.running_mean"].device))
    return convert_ldm_vae_checkpoint(tensors, config) | kept


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    return {
        "block_out_channels": level_widths(shapes, "encoder.down_blocks"),
        # The decoder's levels run from the smallest image to the largest.
        "decoder_block_out_channels": level_widths(shapes, "decoder.up_blocks")[::-1],
    }


VAE = VaeFile(
    info=FLUX2_KLEIN.vae,
    model=AutoencoderKLFlux2,
    convert=_convert_vae,
    diffusers_name="encoder.down_blocks.0.resnets.0.conv1.weight",
    config=_vae_config,
)


_AROUND = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
}


def flux2_layout(double_blocks: int, single_blocks: int) -> list[FusedModule]:
    """The layout of a klein transformer's single file with this many blocks."""
    return transformer_layout(_AROUND, (double_blocks, _double_block), (single_blocks, _single_block))


def _double_block(stored: str, block: str) -> list[FusedModule]:
    return [
        *attention_layout(stored, block),
        FusedModule(f"{stored}.img_mlp.0", (f"{block}.ff.linear_in",)),
        FusedModule(f"{stored}.img_mlp.2", (f"{block}.ff.linear_out",)),
        FusedModule(f"{stored}.txt_mlp.0", (f"{block}.ff_context.linear_in",)),
        FusedModule(f"{stored}.txt_mlp.2", (f"{block}.ff_context.linear_out",)),
    ]


def _single_block(stored: str, block: str) -> list[FusedModule]:
    return [
        FusedModule(f"{stored}.linear1", (f"{block}.attn.to_qkv_mlp_proj",)),
        FusedModule(f"{stored}.linear2", (f"{block}.attn.to_out",)),
        FusedModule(f"{stored}.norm.query_norm", (f"{block}.attn.norm_q",), weight="scale"),
        FusedModule(f"{stored}.norm.key_norm", (f"{block}.attn.norm_k",), weight="scale"),
    ]


def flux2_config(shapes: Shapes) -> dict[str, Any]:
    """The diffusers config of a klein transformer, from the shapes in its single file. Raises KeyError if a tensor is
    missing that every FLUX.2 has."""
    width, tokens = shapes["img_in.weight"]
    norm = "single_blocks.0.norm.query_norm"
    (head,) = shapes.get(f"{norm}.scale") or shapes[f"{norm}.weight"]
    return {
        "patch_size": 1,
        "in_channels": tokens,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count_blocks(shapes, "double_blocks"),
        "num_single_layers": count_blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "guidance_embeds": False,
        "axes_dims_rope": [head // 4] * 4,
    }
