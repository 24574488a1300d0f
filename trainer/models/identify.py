"""What a file of weights is, from its tensors' names, when it is not what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .layout import Shapes
from .weight_files import WeightFile

_LORA = re.compile(r"(lora_(A|B|up|down|unet|te)|\.lora\.(up|down)|hada_w1|lokr_w1|\.lora_A\.)")
_KINDS: tuple[tuple[str, str], ...] = (
    (r"double_stream_modulation_img\.lin\.", "FLUX.2, which has another layout"),
    (r"distilled_guidance_layer\.", "Chroma, another model of the Flux family"),
    (
        r"model\.diffusion_model\.input_blocks\..*attn2|cond_stage_model\.|conditioner\.embedders",
        "a Stable Diffusion checkpoint",
    ),
    (r"(^|\.)input_blocks\.\d+\.", "a UNet of Stable Diffusion"),
    (r"joint_blocks\.\d+\.", "Stable Diffusion 3"),
    (r"(^|\.)(encoder\.down|decoder\.up|decoder\.upsamples|encoder\.downsamples|encoder\.down_blocks)", "a VAE"),
    (r"encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"text_model\.encoder\.", "a CLIP text encoder"),
    (r"(^|\.)layers\.\d+\.self_attn\.", "a language model, such as Qwen's text encoder"),
    (r"(^|\.)blocks\.\d+\.(cross_attn|self_attn)\.", "a video model such as Wan"),
)
_OWN = {
    "flux-kontext": (r"double_blocks\.\d+\.img_attn\.", "a Flux transformer"),
    "qwen-image-edit": (r"transformer_blocks\.\d+\.img_mod\.1\.", "a Qwen-Image transformer"),
}
_DIFFUSERS_FLUX = r"(^|\.)single_transformer_blocks\.\d+\.attn\.to_q"


def describe_other(file: WeightFile, shapes: Shapes, family: str) -> str | None:
    """What the file is, in words, when it cannot be a transformer of this family; None when it may be."""
    names = list(file.tensors)
    if not names:
        return "a file without any tensors"
    if any(_LORA.search(name) for name in names):
        return "a LoRA, which goes on top of a transformer"
    for other, (pattern, words) in _OWN.items():
        if other != family and _any(pattern, names):
            return f"{words}, made for the other base model"
    for pattern, words in _KINDS:
        if _any(pattern, names):
            return words
    if family == "flux-kontext":
        return _other_flux(names, shapes)
    if family == "qwen-image-edit":
        return _other_qwen(names, shapes)
    return None


def _other_flux(names: list[str], shapes: Shapes) -> str | None:
    if _any(_DIFFUSERS_FLUX, names):
        return "a Flux transformer with diffusers' names, as a folder in diffusers' layout holds it; name the folder"
    channels = shapes.get("img_in.weight", (0, 64))[-1]
    if channels == 384:
        return "FLUX.1 Fill, which paints into masks"
    if channels == 128:
        return "FLUX.1 Canny or Depth, which follow a control picture"
    if "img_in.weight" in shapes and "guidance_in.in_layer.weight" not in shapes:
        return "FLUX.1 schnell or another Flux without a guidance embedding"
    return None


def _other_qwen(names: list[str], shapes: Shapes) -> str | None:
    if any(name.endswith("__index_timestep_zero__") for name in names):
        return "Qwen-Image-Edit-2511, which sees its control images in another way"
    if "time_text_embed.addition_t_embedding.weight" in shapes:
        return "Qwen-Image-Layered"
    return None


def _any(pattern: str, names: list[str]) -> bool:
    search = re.compile(pattern).search
    return any(search(name) for name in names)


_EXPECTED = {"black-forest-labs/FLUX.1-Kontext-dev": "kontext", "Qwen/Qwen-Image-Edit": "edit"}
_OTHERS = re.compile(r"(2509|2511|krea|layered)", re.IGNORECASE)


def doubts_about(path: Path, metadata: Mapping[str, str], base_model: str) -> list[str]:
    """Why the file may be of a sibling of the base model, which has the same tensors: what it says of itself. In
    sentences."""
    expected = _EXPECTED.get(base_model)
    if expected is None:
        return []
    titles = [metadata.get(key, "") for key in ("modelspec.title", "modelspec.architecture", "general.name")]
    said = " ".join([path.stem, *titles]).lower()
    sibling = _OTHERS.search(said)
    if expected in said and not sibling:
        return []
    reason = f'it says "{sibling.group(0)}"' if sibling else f'"{expected}" is not in its name'
    return [
        f"{path.name} may not be {base_model}: {reason}, and models of this family have the same tensors. Trained on "
        "another base, a LoRA does not do its edit."
    ]
