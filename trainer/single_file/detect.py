"""Recognizes what a weights file is from the names of its tensors, to say so when another kind was expected."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from ..families.info import FileKind
from ..families.registry import FAMILIES

ADAPTERS = (
    FileKind("an SVDQuant file of nunchaku, a format that cannot be read", (r"\.qweight$", r"\.wscales$")),
    FileKind("quantized by bitsandbytes (nf4), a format that cannot be read", (r"\.quant_state\.bitsandbytes__",)),
    FileKind(
        "a LoRA or another adapter, which goes on top of a transformer",
        (r"(^|[._])lora(_[A-Za-z]+)?[._]|\.(hada_w|lokr_w)\d|\.(oft_blocks|oft_diag|dora_scale|diff|diff_b)$",),
    ),
    FileKind("a ControlNet", (r"^control_model\.|controlnet_|input_hint_block\.",)),
    FileKind("an IP-Adapter", (r"^(ip_adapter|image_proj|ip_adapter_proj_model)\.",)),
)
"""Files that can be made for any model and contain parts of its tensor names; tried before all models."""


OTHER_TRANSFORMERS = (
    FileKind("Stable Diffusion 3", (r"joint_blocks\.\d+\.",)),
    FileKind("Lumina or Z-Image", (r"(noise|context)_refiner\.\d+\.",)),
    FileKind("LTX-Video", (r"^patchify_proj\.",)),
    FileKind("a UNet of Stable Diffusion XL", (r"(^|\.)input_blocks\.\d+\.", r"(^|\.)label_emb\.")),
    FileKind("a UNet of Stable Diffusion", (r"(^|\.)input_blocks\.\d+\.",)),
    FileKind("a UNet of Stable Diffusion with diffusers' names", (r"^down_blocks\.\d+\.(attentions|resnets)\.",)),
    FileKind("a video model such as Wan", (r"(^|\.)blocks\.\d+\.(cross_attn|self_attn)\.",)),
)


OTHER_TEXT_ENCODERS = (
    FileKind("a text encoder with llama.cpp's names", (r"^(enc\.)?blk\.\d+\.",)),
    FileKind("a language model", (r"(^|\.)layers\.\d+\.self_attn\.",)),
)


OTHER_VAES = (FileKind("a small VAE for previews", (r"^(taesd_)?(encoder|decoder|layers)[._]\d+\.conv",)),)


_CHECKPOINT = re.compile(r"^(first_stage_model|cond_stage_model|conditioner|vae|text_encoders)\.")
"""Prefixes of a checkpoint that holds a transformer, text encoders and a VAE in one file."""


def detect_kind(names: Collection[str]) -> FileKind | None:
    """The kind of a file with tensors of these names; None for an unknown kind."""
    return next((kind for kind in _kinds() if all(_found(pattern, names) for pattern in kind.patterns)), None)


def describe_other(names: Collection[str], expected: FileKind, all_names: Collection[str] = ()) -> str | None:
    """Describes tensors of another kind than the expected one; None if they may be of that kind.

    `all_names` are all tensor names of the file, where `names` are those of one of its components.
    """
    if not names:
        return "a file without any weights"
    kind = detect_kind(names)
    if kind is None or kind == expected:
        return None
    is_checkpoint = any(_CHECKPOINT.match(name) for name in all_names)
    return f"a checkpoint with {kind.description}" if is_checkpoint else kind.description


def file_name_warnings(
    path: Path, metadata: Mapping[str, str], base_model: str, name_hint: str, lookalike_names: str
) -> list[str]:
    """Reasons to doubt that a file holds the base model and not another model with the same tensors, one sentence each.

    The file's name and titles should contain `name_hint` and nothing that the regular expression `lookalike_names`
    finds.
    """
    titles = [metadata.get(key, "") for key in ("modelspec.title", "modelspec.architecture", "general.name")]
    text = " ".join([path.stem, *titles]).lower()
    lookalike = re.search(lookalike_names, text)
    if name_hint in text and not lookalike:
        return []
    reason = f'its name or title contains "{lookalike.group(0)}"' if lookalike else f'"{name_hint}" is not in its name'
    return [
        f"{path.name} may not be {base_model}: {reason}, and other models have the same tensors. A LoRA that was "
        "trained on another base model does not work on this one."
    ]


def _kinds() -> Iterator[FileKind]:
    """All known kinds in the order in which they are tried."""
    yield from ADAPTERS
    yield from _with_lookalikes(info.transformer for info in FAMILIES)
    yield from OTHER_TRANSFORMERS
    yield from _with_lookalikes(encoder.detected_kind for info in FAMILIES for encoder in info.text_encoders.values())
    yield from OTHER_TEXT_ENCODERS
    yield from _with_lookalikes(info.vae.detected_kind for info in FAMILIES)
    yield from OTHER_VAES


def _with_lookalikes(kinds: Iterable[FileKind]) -> Iterator[FileKind]:
    for kind in kinds:
        yield from kind.lookalikes
        yield kind


def _found(pattern: str, names: Collection[str]) -> bool:
    search = re.compile(pattern).search
    return any(search(name) for name in names)
