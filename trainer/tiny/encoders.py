"""Text encoders of the embedded models: the real classes, tiny, with random weights that are never trained.

A random network is a fixed hash of its input, which is enough for transformers trained on its output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers import (
        CLIPTextModel,
        CLIPTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen3ForCausalLM,
        T5EncoderModel,
        T5Tokenizer,
    )


TEXT_WIDTH = 64
"""Channels of every text encoder's output."""


def clip_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """Build CLIP, whose output at the last token is Flux's pooled text [B, TEXT_WIDTH] float32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    end = cast("int", tokenizer.eos_token_id)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=cast("int", tokenizer.bos_token_id),
        eos_token_id=end,
        pad_token_id=cast("int", tokenizer.pad_token_id),
    )
    model = CLIPTextModel(config)
    randomize(model, seed)
    with torch.no_grad():
        # The last token attends to every word alike and adds little of its own.
        for name, parameter in model.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter[end] *= 0.1
            elif name.endswith(("position_embedding.weight", "q_proj.weight")):
                parameter *= 0.3
    return model.eval()


def t5_encoder(tokenizer: T5Tokenizer, seed: int) -> T5EncoderModel:
    """Build T5, whose output is Flux's text tokens [B, L, TEXT_WIDTH] float32."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 2,
        d_ff=2 * TEXT_WIDTH,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # pyright: ignore[reportCallIssue] (the base class takes it)
    )
    model = T5EncoderModel(config)
    randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                parameter /= math.sqrt(config.d_kv)  # T5's attention does not scale by it.
    return model.eval()


def qwen_encoder(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Build Qwen2.5-VL, whose last hidden states [B, L, TEXT_WIDTH] float32 encode caption and control image."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids: dict[str, Any] = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    ids |= {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    randomize(model, seed)
    return model.eval()


def qwen3_encoder(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """Build Qwen3, of which hidden states 9, 18 and 27 [B, L, 32] float32 are klein's text tokens."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=None,
        hidden_size=TEXT_WIDTH // 2,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter *= 0.4  # so that 27 layers leave a word its own
    return model.eval()


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw weights that keep the variance of their inputs: variance 1 for embeddings, 1 / inputs for matrices; biases
    are 0 and norms keep their ones."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                inputs = 1 if name.rpartition(".")[0] in embeddings else parameter[0].numel()
                parameter.normal_(std=inputs**-0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
