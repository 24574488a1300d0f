"""The two kinds of blocks of FLUX.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers import transformer_flux2

from .activations import join_swiglu, swiglu
from .elementwise import gated_norm_modulate, gated_residual, norm_modulate
from .flux import Pair, joint_attention, self_attention
from .trial import SIZES, TEXT_TOKENS, TOKENS, WIDTH, Trial, random_rotation, random_tokens


class Flux2TransformerBlock(transformer_flux2.Flux2TransformerBlock):
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
        yield Trial(
            SIZES,
            {
                "hidden_states": random_tokens(TOKENS),
                "encoder_hidden_states": random_tokens(TEXT_TOKENS),
                "temb_mod_img": torch.randn(1, 6 * WIDTH),
                "temb_mod_txt": torch.randn(1, 6 * WIDTH),
                "image_rotary_emb": random_rotation(),
            },
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb_mod_img: torch.Tensor,
        temb_mod_txt: torch.Tensor,
        image_rotary_emb: Pair | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> Pair:
        """Map image and text tokens [B, Li, D] and [B, Lt, D] to text and image tokens of the same shapes and dtype.

        The modulations are [B, 6 * D], the cosines and sines [Lt + Li, 128] float32. Kept keys and values are left to
        diffusers.
        """
        if joint_attention_kwargs or image_rotary_emb is None:
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb_mod_img,
                temb_mod_txt,
                image_rotary_emb,
                joint_attention_kwargs,
            )
        shift, scale, gate, shift2, scale2, gate2 = temb_mod_img.chunk(6, dim=1)
        txt_shift, txt_scale, txt_gate, txt_shift2, txt_scale2, txt_gate2 = temb_mod_txt.chunk(6, dim=1)
        image, image_input = norm_modulate(self.norm1, hidden_states, scale, shift)
        text, text_input = norm_modulate(self.norm1_context, encoder_hidden_states, txt_scale, txt_shift)
        image_output, text_output = joint_attention(self.attn, image_input, text_input, image_rotary_emb)
        image, image_input = gated_norm_modulate(self.norm2, image, gate, image_output, scale2, shift2)
        image = gated_residual(image, gate2, _feed_forward(self.ff, image_input))
        text, text_input = gated_norm_modulate(self.norm2_context, text, txt_gate, text_output, txt_scale2, txt_shift2)
        text = gated_residual(text, txt_gate2, _feed_forward(self.ff_context, text_input))
        return text.clip(-65504, 65504) if text.dtype == torch.float16 else text, image


class Flux2SingleTransformerBlock(transformer_flux2.Flux2SingleTransformerBlock):
    """diffusers' block, of whose class name and modules nothing changes, with a forward pass of fewer kernels."""

    calls_attend = True
    # Modules, whose attributes nn.Module types as Tensor | Module.
    attn: Any
    norm: Any

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        """Yield runs on the CPU in float32 that go through all of the forward pass."""
        yield Trial(
            SIZES,
            {
                "hidden_states": random_tokens(TEXT_TOKENS + TOKENS),
                "encoder_hidden_states": None,
                "temb_mod": torch.randn(1, 3 * WIDTH),
                "image_rotary_emb": random_rotation(),
            },
        )

    def forward(  # type: ignore[override] (diffusers annotates a pair, and returns one tensor)
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        temb_mod: torch.Tensor,
        image_rotary_emb: Pair | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        split_hidden_states: bool = False,
        text_seq_len: int | None = None,
    ) -> Any:
        """Map the text's and the image's tokens [B, L, D] in one tensor to another of the same shape and dtype.

        The modulation is [B, 3 * D], the cosines and sines [L, 128] float32. Kept keys and values, and tokens in two
        tensors, are left to diffusers.
        """
        if joint_attention_kwargs or image_rotary_emb is None or encoder_hidden_states is not None:
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb_mod,
                image_rotary_emb,
                joint_attention_kwargs,
                split_hidden_states,
                text_seq_len,
            )
        attn = self.attn
        shift, scale, gate = temb_mod.chunk(3, dim=1)
        tokens, input = norm_modulate(self.norm, hidden_states, scale, shift)
        projected = attn.to_qkv_mlp_proj(input)
        *own, wide = projected.split([*[attn.inner_dim] * 3, projected.shape[-1] - 3 * attn.inner_dim], dim=-1)
        output = self_attention(attn, own, image_rotary_emb)
        tokens = gated_residual(tokens, gate, attn.to_out(join_swiglu(output, wide)))
        return tokens.clip(-65504, 65504) if tokens.dtype == torch.float16 else tokens


def _feed_forward(layers: Any, input: torch.Tensor) -> torch.Tensor:
    return layers.linear_out(swiglu(layers.linear_in(input)))
