"""A made-up model family: a Flux with other names in its single files, a record of its own, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusers import FluxTransformer2DModel

from trainer.families.info import FileKind, Variant
from trainer.families.records import FLUX_KONTEXT
from trainer.models.flux_kontext import FluxKontext
from trainer.models.flux_single_file import flux_config
from trainer.single_file.key_mapping import Layout, Shapes

TRIO = "example/Trio-Edit"
INFO = replace(
    FLUX_KONTEXT,
    name="trio",
    title="Trio",
    implementations=dict.fromkeys(("diffusers", "comfyui"), f"{__name__}.Trio"),
    variants=(
        Variant(
            name=TRIO,
            download_gb=3,
            resolution=64,
            max_sample_resolution=64,
            text_length=32,
            sample_steps=10,
            sample_guidance=1.0,
        ),
    ),
    pipeline_class="TrioPipeline",
    uses_negative_prompt=True,
    transformer=FileKind("a Trio transformer", (r"(^|\.)duet_blocks\.\d+\.img_attn\.",)),
    name_hint="trio",
    lookalike_names="quartet",
    lora_title="Trio",
    lora_modules=r"(duet|solo)_blocks[._]\d",
)
RENAMED = {"double_blocks.": "duet_blocks.", "single_blocks.": "solo_blocks."}
"""Prefixes of a Flux file's tensors, and those of this family's files."""


class Trio(FluxKontext):
    info = INFO

    def layout(self, transformer: FluxTransformer2DModel) -> Layout:
        flux = FluxKontext.layout(self, transformer)
        return [replace(fused, stored=renamed(fused.stored, RENAMED)) for fused in flux]

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        back = {new: old for old, new in RENAMED.items()}
        return flux_config({renamed(name, back): shape for name, shape in shapes.items()})

    def other_model(self, shapes: Shapes) -> str | None:
        return None


def renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
