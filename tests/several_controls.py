"""A made-up model family that takes up to three control images: the tiny Qwen-Image-Edit, whose text encoder sees each
control at half its size, and a dataset for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainer.data.resize import Size
from trainer.families.records import QWEN_IMAGE_EDIT
from trainer.families.registry import FAMILIES
from trainer.models.qwen_encoders import QwenTextEncoder
from trainer.models.qwen_image_edit import QwenImageEdit
from trainer.models.types import TextConditioning
from trainer.tiny.shapes import TAUGHT_EDITS, make_pairs, png_bytes

SEVERAL = "tiny/several"
INFO = replace(
    QWEN_IMAGE_EDIT,
    name="several",
    title="Several",
    implementations=dict.fromkeys(("diffusers", "comfyui"), f"{__name__}.Several"),
    variants=tuple(replace(variant, name=SEVERAL) for variant in QWEN_IMAGE_EDIT.variants if variant.embedded),
    max_controls=3,
    needs_control=False,
)
COLUMNS = {"caption_column": "words", "control_image_columns": ["first", "second"], "image_column": "after"}


class Several(QwenImageEdit):
    info = INFO
    sizing_control = -1

    def text_control_size(self, control: Size, latent_size: Size) -> Size:
        return Size(latent_size.width // 2, latent_size.height // 2)

    def load_text_encoder(self, *arguments: Any, **options: Any) -> SeveralTextEncoder:
        return SeveralTextEncoder(super().load_text_encoder(*arguments, **options))


class SeveralTextEncoder:
    """Joins what Qwen2.5-VL says of the caption with each control image alone."""

    def __init__(self, encoder: QwenTextEncoder) -> None:
        self.encoder, self.fingerprint, self.to = encoder, encoder.fingerprint, encoder.to

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        seen = controls or [torch.full((1, 3, 32, 32), 0.5)]
        parts = [self.encoder.encode(caption, [control])["prompt_embeds"] for control in seen]
        return {"prompt_embeds": torch.cat(parts, dim=1)}


@contextmanager
def registered() -> Iterator[None]:
    """Context in which the family is known."""
    FAMILIES.append(INFO)
    try:
        yield
    finally:
        FAMILIES.remove(INFO)


def write_several(path: Path, present: Sequence[Sequence[bool]] = ((True, False), (True, True), (True, True))) -> Path:
    """Write a parquet whose rows have the control images that `present` says."""
    edits = list(TAUGHT_EDITS)
    firsts, seconds = (list(make_pairs(edits[:1], seed, len(present))) for seed in (1, 2))
    rows = range(len(present))
    columns: Mapping[str, list[Any]] = {
        "first": [png_bytes(firsts[row].control) if present[row][0] else None for row in rows],
        "second": [png_bytes(seconds[row].control) if present[row][1] else None for row in rows],
        "words": [f"{firsts[row].caption} {'again ' * row}" for row in rows],
        "after": [png_bytes(firsts[row].target) for row in rows],
    }
    pq.write_table(pa.table(columns), path)
    return path


def several_request(parquet: Path, **params: Any) -> dict[str, Any]:
    """A multi_image_editing request on such a parquet."""
    few = {"steps": 4, "sample_every": 2, "lora_rank": 4, "lora_alpha": 4, "samples": []}
    return {
        "resource": str(parquet),
        "base_model": SEVERAL,
        "script_type": "multi_image_editing",
        "training_params": COLUMNS | few | params,
    }
