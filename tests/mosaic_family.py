"""A made-up model family with all the peculiarities that a family may have: two sizes with configs of their own, latent
pixels of 32 x 32, two control images, a schedule, blocks and trained layers of its own. This module, its record and its
configs folders are all that there is of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import Flux2Transformer2DModel, ModelMixin
from diffusers.models.transformers import transformer_flux2
from torch.nn import functional as F

from trainer.blocks.flux2 import Flux2TransformerBlock
from trainer.blocks.trial import HEADS, TEXT_TOKENS, TOKENS, WIDTH, Trial, random_rotation, random_tokens
from trainer.families.info import FileKind, Variant
from trainer.families.records import FLUX2_KLEIN
from trainer.families.registry import FAMILIES
from trainer.models.flux2_klein import Flux2Klein, KleinCodec
from trainer.models.flux2_single_file import flux2_config
from trainer.models.pipeline_folder import variant_of
from trainer.single_file.key_mapping import Layout, Shapes
from trainer.tiny.parts import write_parts

SMALL, LARGE = "example/Mosaic-1B", "example/Mosaic-2B"
SIDE = 2
"""Latent pixels of the VAE, after its own patches, on a side of one of the family's."""

INFO = replace(
    FLUX2_KLEIN,
    name="mosaic",
    title="Mosaic",
    implementations=dict.fromkeys(("diffusers", "comfyui"), f"{__name__}.Mosaic"),
    variants=(
        Variant(
            name=SMALL,
            download_gb=1,
            resolution=128,
            max_sample_resolution=128,
            text_length=32,
            sample_steps=2,
            sample_guidance=1.0,
        ),
    ),
    max_controls=2,
    transformer=FileKind("a Mosaic transformer", (r"(^|\.)mosaic_in\.",)),
    name_hint="mosaic",
    lookalike_names="",
    distilled_entry="",
    distilled_names="",
    lora_title="Mosaic",
    lora_modules=r"mosaic_in",
)
STORED = {"img_in.": "mosaic_in."}
"""Prefix of a tensor in a klein file, and in this family's files."""


class MosaicTransformerBlock(transformer_flux2.Flux2TransformerBlock):
    """diffusers' block, if it had one: its constructor takes other arguments than that of any other family."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(dim=width, num_attention_heads=heads, attention_head_dim=width // heads)

    def forward(self, hidden_states: torch.Tensor, *rest: Any, **others: Any) -> Any:
        return super().forward(2 * hidden_states, *rest, **others)


class MosaicTransformer2DModel(Flux2Transformer2DModel):
    """diffusers' transformer, if it had one."""

    _repeated_blocks: ClassVar = ["MosaicTransformerBlock", "Flux2SingleTransformerBlock"]

    @wraps(Flux2Transformer2DModel.__init__)  # diffusers reads the names of the config's entries off the signature
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for index in range(len(self.transformer_blocks)):
            self.transformer_blocks[index] = MosaicTransformerBlock(self.inner_dim, self.config["num_attention_heads"])


class OwnBlock(MosaicTransformerBlock):
    """Our forward pass of the block."""

    calls_attend = True

    @classmethod
    def trials(cls) -> Iterator[Trial]:
        inputs = {
            "hidden_states": random_tokens(TOKENS),
            "encoder_hidden_states": random_tokens(TEXT_TOKENS),
            "temb_mod_img": torch.randn(1, 6 * WIDTH),
            "temb_mod_txt": torch.randn(1, 6 * WIDTH),
            "image_rotary_emb": random_rotation(),
        }
        yield Trial({"width": WIDTH, "heads": HEADS}, inputs)

    def forward(self, hidden_states: torch.Tensor, *rest: Any, **others: Any) -> Any:
        return Flux2TransformerBlock.forward(self, 2 * hidden_states, *rest, **others)


OwnBlock.__name__ = MosaicTransformerBlock.__name__  # by which diffusers' transformers know their blocks


class Mosaic(Flux2Klein):
    info = INFO
    patch = latent_step = 16 * SIDE
    transformer = MosaicTransformer2DModel
    blocks: ClassVar = {MosaicTransformerBlock: OwnBlock}

    def layout(self, transformer: torch.nn.Module) -> Layout:
        return [
            replace(fused, stored=_renamed(f"{fused.stored}.", STORED)[:-1]) for fused in super().layout(transformer)
        ]

    def transformer_config(self, shapes: Shapes) -> dict[str, Any]:
        back = {new: old for old, new in STORED.items()}
        return flux2_config({_renamed(name, back): shape for name, shape in shapes.items()})

    def other_model(self, shapes: Shapes) -> str | None:
        found = variant_of(self.info, self.transformer_config(shapes), self.variant.name)
        return f"{found.name}; choose that as base_model" if found not in (None, self.variant) else None

    def wrap_vae(self, vae: ModelMixin, device: torch.device | str, fingerprint: str) -> KleinCodec:
        return MosaicCodec(vae, device, fingerprint)

    def lora_targets(self, which: str, transformer: torch.nn.Module) -> str:
        around = ["x_embedder", "context_embedder"] if which == "all-linear" else []
        return "|".join([super().lora_targets(which, transformer), *around])

    def shift(self, scheduler: Mapping[str, Any], tokens: int, steps: int) -> float:
        return 0.5


class MosaicCodec(KleinCodec):
    """The VAE of klein, of whose latent pixels 2 x 2 become channels once more."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(super().encode(pixels), SIDE)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(F.pixel_shuffle(latents, SIDE))


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Context in which the family is known. Its configs and its small model are written to a folder."""
    variants = []
    for base_model, layers in ((SMALL, 1), (LARGE, 2)):
        configs = folder / base_model.rpartition("/")[2]
        write_mosaic(configs, layers)
        variants.append(replace(INFO.variants[0], name=base_model, configs=configs))
    info = replace(INFO, variants=tuple(variants), configs=variants[0].configs)
    Mosaic.info = info
    FAMILIES.insert(0, info)  # its files match klein's patterns too
    try:
        yield
    finally:
        FAMILIES.remove(info)
        Mosaic.info = INFO


def write_mosaic(folder: Path, layers: int) -> None:
    """Write a complete model of this many blocks of each kind, with random weights, in diffusers' layout."""
    write_parts("flux2-klein", folder, seed=1)
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(layers)
    sizes = {"in_channels": config["in_channels"] * SIDE**2, "num_layers": layers, "num_single_layers": layers}
    MosaicTransformer2DModel.from_config(config | sizes).half().save_pretrained(folder / "transformer")
