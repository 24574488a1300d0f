"""The two kinds of blocks of FLUX.1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_flux
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..compiled import fuses
from ..quantization.linear import project
from .activations import join_gelu
from .attention import attend
from .elementwise import gated_norm_modulate, gated_residual, norm_modulate
from .rotation import join_rotated, rotary_tables
from .trial import SIZES, TEXT_TOKENS, TOKENS, WIDTH, Trial, random_rotation, random_tokens

Pair = tuple[torch.Tensor, torch.Tensor]


class FluxTransformerBlock(transformer_flux.FluxTransformerBlock):
    """diffusers' block, of whose class name and modules nothing changes, with a forward pass of fewer kernels."""

    calls_attend = True
    # Modules, whose attributes nn.Module types as Tensor | Module.
    attn: Any
    norm1: Any
    norm1_context: Any
    norm2: Any
    norm2_context: Any
    ff: Any
    ff_context: Any

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        """Yield runs on the CPU in float32 that go through all of the forward pass."""
        yield _trial()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Pair | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> Pair:
        """Map image and text tokens [B, Li, D] and [B, Lt, D] to text and image tokens of the same shapes and dtype.

        `temb` is [B, D], the cosines and sines are [Lt + Li, 128] float32. IP-Adapters are left to diffusers.
        """
        if joint_attention_kwargs or image_rotary_emb is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
        own, context = self.norm1, self.norm1_context
        shift, scale, gate, shift2, scale2, gate2 = own.linear(own.silu(temb)).chunk(6, dim=1)
        image, image_input = norm_modulate(own.norm, hidden_states, scale, shift)
        txt_shift, txt_scale, txt_gate, txt_shift2, txt_scale2, txt_gate2 = context.linear(context.silu(temb)).chunk(
            6, dim=1
        )
        text, text_input = norm_modulate(context.norm, encoder_hidden_states, txt_scale, txt_shift)
        image_output, text_output = joint_attention(self.attn, image_input, text_input, image_rotary_emb)
        image, image_input = gated_norm_modulate(self.norm2, image, gate, image_output, scale2, shift2)
        image = gated_residual(image, gate2, self.ff(image_input))
        text, text_input = gated_norm_modulate(self.norm2_context, text, txt_gate, text_output, txt_scale2, txt_shift2)
        text = gated_residual(text, txt_gate2, self.ff_context(text_input))
        return text.clip(-65504, 65504) if text.dtype == torch.float16 else text, image


class FluxSingleTransformerBlock(transformer_flux.FluxSingleTransformerBlock):
    """diffusers' block, of whose class name and modules nothing changes, with a forward pass of fewer kernels."""

    calls_attend = True
    # Modules, whose attributes nn.Module types as Tensor | Module.
    attn: Any
    norm: Any
    proj_mlp: Any
    proj_out: Any

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        """Yield runs on the CPU in float32 that go through all of the forward pass."""
        yield _trial()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Pair | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> Pair:
        """Map image and text tokens [B, Li, D] and [B, Lt, D] to text and image tokens of the same shapes and dtype.

        `temb` is [B, D], the cosines and sines are [Lt + Li, 128] float32. IP-Adapters are left to diffusers.
        """
        if joint_attention_kwargs or image_rotary_emb is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
        lengths = [encoder_hidden_states.shape[1], hidden_states.shape[1]]
        attn = self.attn
        shift, scale, gate = self.norm.linear(self.norm.silu(temb)).chunk(3, dim=1)
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        tokens, input = norm_modulate(self.norm.norm, tokens, scale, shift)
        wide, *own = project((self.proj_mlp, attn.to_q, attn.to_k, attn.to_v), input)
        output = self_attention(attn, own, image_rotary_emb)
        tokens = gated_residual(tokens, gate, self.proj_out(join_gelu(output, wide)))
        if tokens.dtype == torch.float16:
            tokens = tokens.clip(-65504, 65504)
        text, image = tokens.split(lengths, dim=1)
        return text, image


def _trial() -> Trial:
    return Trial(
        SIZES,
        {
            "hidden_states": random_tokens(TOKENS),
            "encoder_hidden_states": random_tokens(TEXT_TOKENS),
            "temb": torch.randn(1, WIDTH),
            "image_rotary_emb": random_rotation(),
        },
    )


def joint_attention(attn: Any, image: torch.Tensor, text: torch.Tensor, rotary: Pair) -> Pair:
    """Joint attention of image and text, [B, Li, D] and [B, Lt, D] of one float dtype, returned in that order.

    `attn` is diffusers' module; the cosines and sines are [Lt + Li, head size] float32.
    """
    query, key, value = _heads(project((attn.to_q, attn.to_k, attn.to_v), image), attn)
    added = project((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), text)
    txt_query, txt_key, txt_value = _heads(added, attn)
    if _rotates(query, attn):
        query, key = join_rotated(
            [txt_query, query],
            [txt_key, key],
            [attn.norm_added_q.weight, attn.norm_q.weight],
            [attn.norm_added_k.weight, attn.norm_k.weight],
            _table(rotary),
            attn.norm_q.eps,
        )
    else:
        query, key = attn.norm_q(query), attn.norm_k(key)
        txt_query, txt_key = attn.norm_added_q(txt_query), attn.norm_added_k(txt_key)
        query, key = torch.cat([txt_query, query], dim=1), torch.cat([txt_key, key], dim=1)
        query, key = (_rotated(part, rotary) for part in (query, key))
    value = torch.cat([txt_value, value], dim=1)
    output = attend(query, key, value, None, attn.processor._attention_backend)
    text_output, image_output = output.split([text.shape[1], image.shape[1]], dim=1)
    return attn.to_out[0](image_output.contiguous()), attn.to_add_out(text_output.contiguous())


def self_attention(attn: Any, projected: Sequence[torch.Tensor], rotary: Pair) -> torch.Tensor:
    """Attention on `projected` queries, keys and values, each [B, L, D] of one float dtype: [B, L, D] of it, before the
    output layer. `attn` is diffusers' module; the cosines and sines are [L, head size] float32."""
    query, key, value = _heads(projected, attn)
    if _rotates(query, attn):
        weights = [attn.norm_q.weight], [attn.norm_k.weight]
        query, key = join_rotated([query], [key], *weights, _table(rotary), attn.norm_q.eps)
    else:
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key = (_rotated(part, rotary) for part in (query, key))
    return attend(query, key, value, None, attn.processor._attention_backend)


def _heads(projected: Sequence[torch.Tensor], attn: Any) -> list[torch.Tensor]:
    return [part.unflatten(-1, (-1, attn.head_dim)) for part in projected]


def _rotated(values: torch.Tensor, rotary: Pair) -> torch.Tensor:
    pair: Any = rotary  # diffusers annotates a tuple of one, and the result as a pair
    return cast("torch.Tensor", apply_rotary_emb(values, pair, sequence_dim=1))


def _rotates(query: torch.Tensor, attn: Any) -> bool:
    """Tell whether norm and rotation are one kernel; the norms' weights get no gradient there."""
    weight = attn.norm_q.weight
    return fuses(query) and isinstance(weight, nn.Parameter) and not weight.requires_grad


_TABLES = WeakTensorKeyDictionary()


def _table(rotary: Pair) -> torch.Tensor:
    """`rotary_tables` of a forward pass, which its blocks share."""
    cosine, sine = rotary
    if cosine not in _TABLES:
        _TABLES[cosine] = rotary_tables(cosine[:, ::2], sine[:, ::2])
    return _TABLES[cosine]
