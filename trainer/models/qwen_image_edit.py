"""Qwen-Image-Edit: the steps of diffusers' QwenImageEditPipeline, separated for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin, QwenImageEditPipeline, QwenImageTransformer2DModel
from diffusers.models.transformers import transformer_qwenimage
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from torch.nn.utils.rnn import pad_sequence

from ..blocks.qwen_image import QwenImageTransformerBlock
from ..data.resize import Size
from ..families.records import QWEN_IMAGE_EDIT
from ..single_file.key_mapping import Layout, Shapes, count_blocks, same_names
from .diffusers_family import AXES, HEAD_SIZE, PipelineFamily, any_of, config_of
from .qwen_encoders import EditPipeline, QwenCodec, QwenTextEncoder
from .qwen_processor import load_processor, make_processor
from .qwen_single_file import TEXT_ENCODERS, TOKENIZERS, VAE
from .types import PackedLatents, TextConditioning

SIDE_STEP = 32
"""Pixels; `calculate_dimensions` rounds sides to multiples of it."""


VISION_TOKEN = 28
"""Side of a vision token of Qwen2.5-VL in pixels: patches of 14, merged 2 x 2."""


MAX_ASPECT = 200
"""Largest aspect ratio. Source: transformers' `smart_resize` of Qwen2-VL's images, which refuses more."""


ROPE_POSITIONS = 4096
"""Positions in the table of diffusers' QwenEmbedRope."""


TEMPLATE_TOKENS = 32
"""Tokens of the template that the transformer sees beside caption and image: 7 in the published one, rounded up."""


CAPTION_TOKENS = 128
"""Tokens assumed for a caption with its template in memory estimates. A judgement: most captions are shorter."""


class QwenImageEdit(PipelineFamily):
    """Qwen-Image-Edit under diffusers' policy.

    Text conditioning: `prompt_embeds` [B, tokens, width] of Qwen2.5-VL, which reads the caption and the control image;
    with padding, also `prompt_embeds_mask` [B, tokens] bool, False at padding.
    """

    info = QWEN_IMAGE_EDIT
    pipeline = QwenImageEditPipeline
    pack_latents = staticmethod(QwenImageEditPipeline._pack_latents)
    unpack_latents = staticmethod(QwenImageEditPipeline._unpack_latents)
    transformer = QwenImageTransformer2DModel
    blocks: ClassVar = {transformer_qwenimage.QwenImageTransformerBlock: QwenImageTransformerBlock}
    rope_class: ClassVar[type[QwenEmbedRope]] = QwenEmbedRope
    empty_prompt: ClassVar[str] = " "
    """Negative prompt where none is given."""
    text_encoders: ClassVar = TEXT_ENCODERS
    tokenizers: ClassVar = TOKENIZERS
    counted_tokenizer = "tokenizer"
    vae_file = VAE

    def empty_transformer(self, config: Mapping[str, Any]) -> torch.nn.Module:
        transformer = super().empty_transformer(config)
        # The rotary tables are neither parameters nor buffers, so no weights file would fill them in.
        transformer.pos_embed = self.rope_class(10000, list(config["axes_dims_rope"]), scale_rope=True)
        return transformer

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        width, tokens = shapes["img_in.weight"]
        return {
            "patch_size": 2,
            "in_channels": tokens,
            "out_channels": shapes["proj_out.weight"][0] // 4,
            "num_layers": count_blocks(shapes, "transformer_blocks"),
            "attention_head_dim": HEAD_SIZE,
            "num_attention_heads": width // HEAD_SIZE,
            "joint_attention_dim": shapes["txt_in.weight"][1],
            "axes_dims_rope": AXES,
        }

    def layout(self, transformer: torch.nn.Module) -> Layout:
        return same_names(transformer)

    def other_model(self, shapes: Shapes) -> str | None:
        if any(name.endswith("__index_timestep_zero__") for name in shapes):
            return "Qwen-Image-Edit-2511, which sees its control images in another way; choose that as base_model"
        if "time_text_embed.addition_t_embedding.weight" in shapes:
            return "Qwen-Image-Layered"
        return None

    def text_pipeline(self, folder: Path | None, dtype: torch.dtype, **loaded: Any) -> DiffusionPipeline:
        if tokenizer := loaded.get("tokenizer"):
            loaded["processor"] = make_processor(tokenizer)
        else:
            assert folder is not None, "without a folder the tokenizer is loaded"
            loaded["processor"] = load_processor(folder)
        return super().text_pipeline(folder, dtype, **loaded)

    def wrap_text_encoder(
        self, pipeline: DiffusionPipeline, device: torch.device | str, fingerprint: str
    ) -> QwenTextEncoder:
        assert isinstance(pipeline, EditPipeline)
        return QwenTextEncoder(pipeline, device, fingerprint)

    def wrap_vae(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> QwenCodec:
        return QwenCodec(vae, device, fingerprint)

    def control_size(self, control: Size, target: Size, control_resolution: str) -> Size:
        area = self.control_area(target, control_resolution)
        return rounded_area(control, area.width * area.height)

    def control_area(self, target: Size, control_resolution: str) -> Size:
        """A size of the area that a control image gets."""
        inference = Size(self.variant.resolution, self.variant.resolution)
        return target if control_resolution == "target" else inference

    def target_size(self, target: Size, resolution: int) -> Size:
        return rounded_area(target, resolution**2)

    def size_fault(self, size: Size) -> str | None:
        if max(size) <= MAX_ASPECT * min(size):
            return None
        return (
            f"it would be resized to {size.width} x {size.height} pixels, but a side may be at most {MAX_ASPECT} times "
            "as long as the other"
        )

    def caption_room(self, target: Size, controls: Sequence[Size]) -> int | None:
        # As many positions as the transformer's table has; the text begins where the largest image ends.
        side = max(max(size) // self.patch for size in (target, *controls))
        seen = sum(_vision_tokens(self.text_control_size(control, control)) for control in controls)
        return ROPE_POSITIONS - side // 2 - 1 - seen - TEMPLATE_TOKENS

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._per_channel("latents_mean", latents)) / self._per_channel("latents_std", latents)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        # Divided by the reciprocal, because the pipeline rounds that way.
        return latents / (1.0 / self._per_channel("latents_std", latents)) + self._per_channel("latents_mean", latents)

    def _per_channel(self, statistic: str, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.vae_config[statistic]).view(1, -1, 1, 1).to(like.device, like.dtype)

    def collate_text(self, texts: Sequence[TextConditioning]) -> TextConditioning:
        prompts = [text["prompt_embeds"][0] for text in texts]
        batch = {"prompt_embeds": pad_sequence(prompts, batch_first=True)}
        lengths = [len(prompt) for prompt in prompts]
        if min(lengths) < max(lengths):
            kept = [torch.ones(length, dtype=torch.bool, device=prompts[0].device) for length in lengths]
            batch["prompt_embeds_mask"] = pad_sequence(kept, batch_first=True)
        return batch

    def predict(
        self,
        transformer: torch.nn.Module,
        noisy: PackedLatents,
        controls: Sequence[PackedLatents],
        text: TextConditioning,
        sigma: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        tokens = noisy.tokens
        images = [noisy, *controls]
        return transformer(
            hidden_states=torch.cat([image.tokens for image in images], dim=1),
            # Rounded as in the pipeline, where timesteps pass through 0..1000 in the latents' dtype.
            timestep=(sigma * 1000).to(tokens.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_hidden_states_mask=text.get("prompt_embeds_mask"),
            img_shapes=[[(1, *image.grid) for image in images]] * tokens.shape[0],
            return_dict=False,
        )[0][:, : tokens.shape[1]]

    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        # The last block's text output is discarded, so layers that feed nothing else cannot learn.
        last = config_of(transformer)["num_layers"] - 1
        every, but_last = r"transformer_blocks\.\d+\.", rf"transformer_blocks\.(?!{last}\.)\d+\."
        targets = [
            rf"{every}attn\.{any_of('to_q', 'to_k', 'to_v', 'to_out.0', 'add_k_proj', 'add_v_proj')}",
            rf"{but_last}attn\.{any_of('add_q_proj', 'to_add_out')}",
        ]
        if which != "attention":
            layers = any_of("0.proj", "2")
            targets += [rf"{every}img_mlp\.net\.{layers}", rf"{but_last}txt_mlp\.net\.{layers}"]
        if which == "all-linear":
            targets += [rf"{every}{any_of('img_mod', 'txt_mod')}\.1"]
        return "|".join(targets)

    def idle_layers(self, transformer: torch.nn.Module) -> str:
        last = rf"transformer_blocks\.{config_of(transformer)['num_layers'] - 1}\."
        return rf"{last}(attn\.{any_of('add_q_proj', 'to_add_out')}|txt_mlp\.net\.{any_of('0.proj', '2')})"

    def text_shapes(self, config: Mapping[str, Any], controls: Sequence[Size]) -> dict[str, tuple[int, ...]]:
        image_tokens = sum(control.width * control.height // VISION_TOKEN**2 for control in controls)
        caption_tokens = max(CAPTION_TOKENS, self.longest_caption)
        return {"prompt_embeds": (image_tokens + caption_tokens, config["joint_attention_dim"])}

    def few_blocks(self, count: int) -> list[dict[str, int]]:
        return [{"num_layers": count}]

    def modulation_layers(self) -> str:
        return rf"transformer_blocks\.\d+\.{any_of('img_mod', 'txt_mod')}\.1|norm_out\.linear"

    def negative_prompt(self, prompt: str, guidance: float) -> str | None:
        if guidance <= 1:
            return None
        return self.empty_prompt

    def combine_guidance(self, positive: torch.Tensor, negative: torch.Tensor, guidance: float) -> torch.Tensor:
        combined = negative + guidance * (positive - negative)
        norms = [torch.norm(velocity, dim=-1, keepdim=True) for velocity in (positive, combined)]
        return combined * (norms[0] / norms[1])


def _vision_tokens(control: Size) -> int:
    """Tokens of an image in the text, at most: its sides are rounded to whole tokens."""
    return (control.width // VISION_TOKEN + 1) * (control.height // VISION_TOKEN + 1)


def rounded_area(image: Size, area: int) -> Size:
    """The pipeline's size for an image, except that its rounding to zero of a very narrow side is prevented."""
    width, height, _ = calculate_dimensions(area, image.width / image.height)
    return at_least(Size(width, height), SIDE_STEP)


def at_least(size: Size, side: int) -> Size:
    """The size with both sides at least `side`."""
    return Size(max(side, size.width), max(side, size.height))
