"""What a file of weights is, from its tensors' names, when it is not what was asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file."""

    name: str
    """Under which something asks for it; empty for what nothing asks for."""
    words: str
    """For messages."""
    patterns: tuple[str, ...]
    """Each is found in some tensor's name."""


_BLOCK = r"(^|\.)"


KINDS: Sequence[Kind] = (
    # What can be made of many models, and holds parts of their names, comes before the models.
    Kind("", "an SVDQuant file of nunchaku, a format that cannot be read", (r"\.qweight$", r"\.wscales$")),
    Kind("", "quantized by bitsandbytes (nf4), a format that cannot be read", (r"\.quant_state\.bitsandbytes__",)),
    Kind(
        "",
        "a LoRA or another adapter, which goes on top of a transformer",
        (r"(^|[._])lora(_[A-Za-z]+)?[._]|\.(hada_w|lokr_w)\d|\.(oft_blocks|oft_diag|dora_scale|diff|diff_b)$",),
    ),
    Kind("", "a ControlNet", (r"^control_model\.|controlnet_|input_hint_block\.",)),
    Kind("", "an IP-Adapter", (r"^(ip_adapter|image_proj|ip_adapter_proj_model)\.",)),
    # Transformers
    Kind("", "FLUX.2, which has another layout", (r"double_stream_modulation_img\.lin",)),
    Kind("", "Chroma, another model of the Flux family", (r"distilled_guidance_layer\.",)),
    Kind("", "HunyuanVideo", (r"double_blocks\.\d+\.", r"txt_in\.(individual_token_refiner|t_embedder)\.")),
    Kind("flux", "a Flux transformer", (rf"{_BLOCK}double_blocks\.\d+\.img_attn\.", r"single_blocks\.\d+\.linear1\.")),
    Kind(
        "",
        "a Flux transformer with diffusers' names, as a folder in diffusers' layout holds it; name the folder",
        (r"single_transformer_blocks\.\d+\.attn\.to_q",),
    ),
    Kind("qwen-image", "a Qwen-Image transformer", (r"transformer_blocks\.\d+\.img_mod\.1\.",)),
    Kind("", "Stable Diffusion 3", (r"joint_blocks\.\d+\.",)),
    Kind("", "Lumina or Z-Image", (r"(noise|context)_refiner\.\d+\.",)),
    Kind("", "LTX-Video", (r"^patchify_proj\.",)),
    Kind("", "a UNet of Stable Diffusion XL", (rf"{_BLOCK}input_blocks\.\d+\.", rf"{_BLOCK}label_emb\.")),
    Kind("", "a UNet of Stable Diffusion", (rf"{_BLOCK}input_blocks\.\d+\.",)),
    Kind("", "a UNet of Stable Diffusion with diffusers' names", (r"^down_blocks\.\d+\.(attentions|resnets)\.",)),
    Kind("", "a video model such as Wan", (rf"{_BLOCK}blocks\.\d+\.(cross_attn|self_attn)\.",)),
    # Text encoders
    Kind("", "a text encoder with llama.cpp's names", (r"^(enc\.)?blk\.\d+\.",)),
    Kind("", "a whole T5 with its decoder", (r"decoder\.block\.\d+\.layer\.",)),
    Kind("t5", "a T5 text encoder", (r"encoder\.block\.\d+\.layer\.",)),
    Kind("", "CLIP's vision encoder", (r"^vision_model\.encoder\.",)),
    Kind("", "an OpenCLIP text encoder", (r"transformer\.resblocks\.\d+\.",)),
    Kind("clip", "a CLIP text encoder", (r"^(.*text_model\.)?encoder\.layers\.\d+\.self_attn\.", r"token_embedding")),
    Kind("qwen2.5-vl", "Qwen's text encoder", (r"^visual\.blocks\.", r"^model\.layers\.\d+\.self_attn\.q_proj\.bias")),
    Kind("", "a language model", (rf"{_BLOCK}layers\.\d+\.self_attn\.",)),
    # VAEs
    Kind("wan-vae", "a VAE of Qwen-Image's or Wan's kind", (r"(encoder\.downsamples|decoder\.upsamples)\.\d+\.",)),
    Kind("wan-vae", "a VAE of Qwen-Image's or Wan's kind", (r"(encoder|decoder)\.mid_block\..*\.gamma$",)),
    Kind("image-vae", "a VAE", (r"(encoder\.down|decoder\.up|encoder\.down_blocks|decoder\.up_blocks)\.\d+\.",)),
    Kind("", "a small VAE for previews", (r"^(taesd_)?(encoder|decoder|layers)[._]\d+\.conv",)),
)


_CHECKPOINT = re.compile(r"^(first_stage_model|cond_stage_model|conditioner|vae|text_encoders)\.")


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of a file with tensors of these names; None when it is no known one."""
    return next((kind for kind in KINDS if all(_any(pattern, names) for pattern in kind.patterns)), None)


def describe_other(names: Collection[str], wanted: str, whole: Collection[str] = ()) -> str | None:
    """What tensors of these names are, in words, when they are of another kind than the wanted one; None when they
    may be of that kind. `whole` are the names of all tensors in the file, where the names asked about are a part."""
    if not names:
        return "a file without any weights"
    kind = kind_of(names)
    if kind is None or kind.name == wanted:
        return None
    inside = any(_CHECKPOINT.match(name) for name in whole)
    return f"a checkpoint with {kind.words}" if inside else kind.words


def warnings_about(
    path: Path, metadata: Mapping[str, str], base_model: str, expected: str, lookalike_names: str
) -> list[str]:
    """Why the file may be of a sibling of the base model, which has the same tensors: what it says of itself. In
    sentences. The name of a file of the base model has `expected` in it, and nothing that `lookalike_names`, a regular
    expression, finds.
    """
    titles = [metadata.get(key, "") for key in ("modelspec.title", "modelspec.architecture", "general.name")]
    said = " ".join([path.stem, *titles]).lower()
    sibling = re.search(lookalike_names, said)
    if expected in said and not sibling:
        return []
    reason = f'it says "{sibling.group(0)}"' if sibling else f'"{expected}" is not in its name'
    return [
        f"{path.name} may not be {base_model}: {reason}, and models of this family have the same tensors. Trained on "
        "another base, a LoRA does not do its edit."
    ]


def _any(pattern: str, names: Collection[str]) -> bool:
    search = re.compile(pattern).search
    return any(search(name) for name in names)
