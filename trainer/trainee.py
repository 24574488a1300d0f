"""What is trained: a LoRA on the frozen transformer, or all of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from .distributed import Ranks
from .flow import example_generator
from .init_lora import read_init_lora
from .lora import LoraAdapter
from .memory import Parts
from .placement import compile_blocks
from .recompute import recompute_blocks
from .schema import TrainingParams
from .settings import RunSettings
from .weights import FullTransformer

if TYPE_CHECKING:
    from torch.nn import Parameter


class Trainee(Protocol):
    """The trained weights of a run."""

    parameters: dict[str, Parameter]
    """By name. float32, but for a full fine-tune with adafactor, whose weights are in the computation's format."""

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the weights file that is handed on."""
        ...

    def exported_values(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Inside, the model computes with the exported file's values."""
        ...


def build_trainee(parts: Parts, params: TrainingParams, settings: RunSettings, ranks: Ranks | None = None) -> Trainee:
    """Make the transformer ready for training: frozen with a LoRA, fresh or from a file, or all of it trainable in
    place. Of a full fine-tune by several processes each holds a part of every tensor."""
    transformer = parts.transformer()
    if params.use_lora:
        assert not (parts.plan.modulation_on_host and settings.lora_targets == "all-linear"), "modulation is trained"
        targets = parts.model.family.lora_targets(settings.lora_targets, transformer)
        seed = example_generator(settings.seed, "lora").initial_seed()
        start = read_init_lora(parts.model.family, transformer, params, settings)
        trainee: Trainee = LoraAdapter(transformer, targets, params.lora_rank, params.lora_alpha, seed, start)
    else:
        assert not (parts.plan.modulation_on_host or parts.plan.streamed), "nothing is frozen"
        trainee = FullTransformer(
            transformer,
            parts.model.family.layout(transformer),
            settings.save_layout == "single_file+diffusers",
            parts.dtype if settings.optimizer == "adafactor" else torch.float32,
        )
    recompute_blocks(transformer, parts.plan)
    if parts.plan.compile:
        compile_blocks(transformer)
    if ranks is not None and ranks.sharded:
        parts.placement().shard(kept_whole=trainee.parameters.values() if params.use_lora else ())
    parts.placement().to(parts.device)
    if ranks is not None and ranks.sharded and isinstance(trainee, FullTransformer):
        trainee.parameters = dict(transformer.named_parameters())
        trainee.writes = ranks.main
    return trainee
