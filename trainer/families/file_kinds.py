"""Kinds of weights files that the supported families have, and those that look like them."""

from __future__ import annotations

from .info import FileKind

FLUX2_TRANSFORMER = FileKind("a FLUX.2 transformer", (r"double_stream_modulation_img\.lin\.",))


FLUX_TRANSFORMER = FileKind(
    "a Flux transformer",
    (r"(^|\.)double_blocks\.\d+\.img_attn\.", r"single_blocks\.\d+\.linear1\."),
    lookalikes=(
        FLUX2_TRANSFORMER,
        FileKind("Chroma, another model of the Flux family", (r"distilled_guidance_layer\.",)),
        FileKind("HunyuanVideo", (r"double_blocks\.\d+\.", r"txt_in\.(individual_token_refiner|t_embedder)\.")),
        FileKind(
            "a FLUX.2 transformer with diffusers' names, as a folder in diffusers' layout holds it; name the folder",
            (r"single_transformer_blocks\.\d+\.attn\.to_qkv_mlp_proj",),
        ),
        FileKind(
            "a Flux transformer with diffusers' names, as a folder in diffusers' layout holds it; name the folder",
            (r"single_transformer_blocks\.\d+\.attn\.to_q",),
        ),
    ),
)


QWEN_TRANSFORMER = FileKind("a Qwen-Image transformer", (r"transformer_blocks\.\d+\.img_mod\.1\.",))


T5 = FileKind(
    "a T5 text encoder",
    (r"encoder\.block\.\d+\.layer\.",),
    lookalikes=(FileKind("a whole T5 with its decoder", (r"decoder\.block\.\d+\.layer\.",)),),
)


CLIP = FileKind(
    "a CLIP text encoder",
    (r"^(.*text_model\.)?encoder\.layers\.\d+\.self_attn\.", r"token_embedding"),
    lookalikes=(
        FileKind("CLIP's vision encoder", (r"^vision_model\.encoder\.",)),
        FileKind("an OpenCLIP text encoder", (r"transformer\.resblocks\.\d+\.",)),
    ),
)


QWEN_VL = FileKind("Qwen's text encoder", (r"^visual\.blocks\.", r"^model\.layers\.\d+\.self_attn\.q_proj\.bias"))


WAN_VAE = FileKind(
    "a VAE of Qwen-Image's or Wan's kind",
    (r"(encoder\.downsamples|decoder\.upsamples)\.\d+\.|(encoder|decoder)\.mid_block\..*\.gamma$",),
)


FLUX2_VAE = FileKind("the VAE of FLUX.2", (r"^bn\.running_mean$", r"^encoder\.down(_blocks)?\.\d+\."))


IMAGE_VAE = FileKind(
    "a VAE",
    (r"(encoder\.down|decoder\.up|encoder\.down_blocks|decoder\.up_blocks)\.\d+\.",),
    lookalikes=(WAN_VAE, FLUX2_VAE),
)


QWEN3 = FileKind(
    "a Qwen3 text encoder",
    (r"^model\.layers\.\d+\.self_attn\.q_norm\.",),
    lookalikes=(FileKind("a Qwen3-VL, which sees images", (r"(^|\.)visual\.blocks\.", r"\.self_attn\.q_norm\.")),),
)
