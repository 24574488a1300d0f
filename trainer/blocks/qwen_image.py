"""The block of Qwen-Image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from diffusers.models.transformers import transformer_qwenimage
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch.utils.weak import WeakTensorKeyDictionary

from ..compiled import fuses
from ..quantization.linear import project
from .attention import attend
from .elementwise import gated_norm_modulate, gated_residual, norm_modulate
from .rotation import join_rotated, rotary_tables
from .trial import HEAD_SIZE, SIZES, TEXT_TOKENS, TOKENS, WIDTH, Trial, random_tokens

Pair = tuple[torch.Tensor, torch.Tensor]


class QwenImageTransformerBlock(transformer_qwenimage.QwenImageTransformerBlock):
    """diffusers' block, of whose class name and modules nothing changes, with a forward pass of fewer kernels."""

    calls_attend = True
    # Modules, whose attributes nn.Module types as Tensor | Module.
    attn: Any
    img_mod: Any
    txt_mod: Any
    img_norm1: Any
    img_norm2: Any
    txt_norm1: Any
    txt_norm2: Any
    img_mlp: Any
    txt_mlp: Any

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        """Yield runs on the CPU in float32 that go through all of the forward pass, with and without `zero_cond_t`."""
        angles = torch.randn(TOKENS + TEXT_TOKENS, HEAD_SIZE // 2)
        inputs = {
            "hidden_states": random_tokens(TOKENS),
            "encoder_hidden_states": random_tokens(TEXT_TOKENS),
            "encoder_hidden_states_mask": torch.arange(TEXT_TOKENS)[None] < TEXT_TOKENS - 1,
            "image_rotary_emb": torch.polar(torch.ones_like(angles), angles).split([TOKENS, TEXT_TOKENS]),
        }
        yield Trial(SIZES, {**inputs, "temb": torch.randn(1, WIDTH)})
        rows = torch.arange(TOKENS)[None] // (TOKENS // 2)
        two_timesteps = {"temb": torch.randn(2, WIDTH), "modulate_index": rows}
        yield Trial({**SIZES, "zero_cond_t": True}, {**inputs, **two_timesteps})

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None,
        temb: torch.Tensor,
        image_rotary_emb: Pair | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        modulate_index: Any = None,
    ) -> Pair:
        """Map image and text tokens [B, Li, D] and [B, Lt, D] to text and image tokens of the same shapes and dtype.

        `temb` is [B, D], the mask [B, Lt] bool, the rotary frequencies complex64 [Li, 64] and [Lt, 64]. With
        `zero_cond_t`, `temb` is [2B, D], the second half for timestep 0, and `modulate_index` [B, Li] int: 0 at image
        tokens that the first half modulates, 1 at the others. What only other models than Qwen-Image-Edit use is left
        to diffusers.
        """
        if self.zero_cond_t != (modulate_index is not None) or joint_attention_kwargs or image_rotary_emb is None:
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                cast("torch.Tensor", encoder_hidden_states_mask),  # diffusers takes None too
                temb,
                image_rotary_emb,
                joint_attention_kwargs,
                modulate_index,
            )
        row = None if modulate_index is None else modulate_index[..., None]
        shift, scale, gate, shift2, scale2, gate2 = self.img_mod(temb).chunk(6, -1)
        if self.zero_cond_t:
            temb = temb.chunk(2)[0]
        txt_shift, txt_scale, txt_gate, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(temb).chunk(6, -1)
        image, image_input = norm_modulate(self.img_norm1, hidden_states, scale, shift, row)
        text, text_input = norm_modulate(self.txt_norm1, encoder_hidden_states, txt_scale, txt_shift)
        image_output, text_output = self._attention(
            image_input, text_input, encoder_hidden_states_mask, image_rotary_emb
        )
        image, image_input = gated_norm_modulate(self.img_norm2, image, gate, image_output, scale2, shift2, row)
        text, text_input = gated_norm_modulate(self.txt_norm2, text, txt_gate, text_output, txt_scale2, txt_shift2)
        image = gated_residual(image, gate2, self.img_mlp(image_input), row)
        text = gated_residual(text, txt_gate2, self.txt_mlp(text_input))
        if text.dtype == torch.float16:
            text, image = text.clip(-65504, 65504), image.clip(-65504, 65504)
        return text, image

    def _attention(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None, rotary: Pair) -> Pair:
        """Joint attention of image and text, [B, Li, D] and [B, Lt, D], in that order."""
        attn = self.attn
        own = project((attn.to_q, attn.to_k, attn.to_v), image)
        added = project((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), text)
        heads = (-1, attn.inner_dim // attn.heads)
        query, key, value = (part.unflatten(-1, heads) for part in own)
        txt_query, txt_key, txt_value = (part.unflatten(-1, heads) for part in added)
        if fuses(query) and not attn.norm_q.weight.requires_grad:
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
            query, key = (_rotated(part, rotary[0]) for part in (query, key))
            txt_query, txt_key = (_rotated(part, rotary[1]) for part in (txt_query, txt_key))
            query, key = torch.cat([txt_query, query], dim=1), torch.cat([txt_key, key], dim=1)
        value = torch.cat([txt_value, value], dim=1)
        output = attend(query, key, value, _joint_mask(mask, image), attn.processor._attention_backend)
        text_output, image_output = output.split([text.shape[1], image.shape[1]], dim=1)
        return attn.to_out[0](image_output.contiguous()), attn.to_add_out(text_output.contiguous())


def _rotated(values: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    # diffusers annotates a pair, and returns one tensor.
    return cast("torch.Tensor", apply_rotary_emb_qwen(values, frequencies, use_real=False))


def _joint_mask(mask: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    every = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
    return torch.cat([mask, every], dim=1)[:, None, None, :]


_TABLES = WeakTensorKeyDictionary()


def _table(rotary: Pair) -> torch.Tensor:
    """`rotary_tables` of the text's and the image's frequencies; the blocks of a forward pass share it."""
    image, text = rotary
    if image not in _TABLES:
        real = torch.view_as_real(torch.cat([text, image]))
        _TABLES[image] = rotary_tables(real[..., 0], real[..., 1])
    return _TABLES[image]
