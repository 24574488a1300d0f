"""The embedded models' text encoders: real classes, small, with random weights that are never trained.

A random network is a fixed hash of its input. That is enough: the transformers are trained on what it says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import (
        CLIPTextModel,
        CLIPTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        T5EncoderModel,
        T5TokenizerFast,
    )


TEXT_WIDTH = 64
"""Channels of every text encoder's output."""


def clip_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """CLIP: its output at the last token is Flux's pooled text [B, TEXT_WIDTH]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    randomize(model, seed)
    with torch.no_grad():
        # The last token looks at every word alike, and adds little of its own to what it sees there.
        for name, parameter in model.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter[tokenizer.eos_token_id] *= 0.1
            elif name.endswith(("position_embedding.weight", "q_proj.weight")):
                parameter *= 0.3
    return model.eval()


def t5_encoder(tokenizer: T5TokenizerFast, seed: int) -> T5EncoderModel:
    """T5: Flux's text tokens [B, tokens, TEXT_WIDTH]."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 2,
        d_ff=2 * TEXT_WIDTH,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = T5EncoderModel(config)
    randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                parameter /= math.sqrt(config.d_kv)  # T5's attention does not do it itself.
    return model.eval()


def qwen_encoder(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL: reads caption and control image; its last hidden states [B, tokens, TEXT_WIDTH] are the text."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {
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


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep the variance of what goes through them: embeddings 1, matrices 1 / inputs, biases 0.

    Norms keep their ones. The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                inputs = 1 if name.rpartition(".")[0] in embeddings else parameter[0].numel()
                parameter.normal_(std=inputs**-0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
