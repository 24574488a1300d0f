"""What is trained: a LoRA on the frozen transformer, or all of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..config.request import TrainingParams
from ..config.settings import RunSettings
from ..distributed.ranks import Ranks
from ..lora.adapter import LoraAdapter
from ..lora.init_lora import read_init_lora
from ..memory.checkpointing import recompute_blocks
from ..memory.model_parts import Parts
from ..memory.placement import compile_blocks
from .rng import example_generator

if TYPE_CHECKING:
    from torch.nn import Parameter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..distributed.fsdp import whole
from ..files import remove, replacing
from ..quantization.linear import dequantize_layers
from ..single_file.key_mapping import Layout, to_stored
from ..tensors import write_tensors

if TYPE_CHECKING:
    from diffusers import ModelMixin
from ..tensors import swapped_values


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


class FullTransformer:
    """All of a transformer's weights, trained."""

    def __init__(
        self, transformer: ModelMixin, layout: Layout, with_folder: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        """`layout` is that of the file that it is exported to; `with_folder` writes diffusers' folder beside it. The
        weights are held in `dtype`."""
        dequantize_layers(transformer, dtype)
        transformer.to(dtype=dtype).requires_grad_(True)
        self.transformer = transformer
        self.layout = layout
        self.with_folder = with_folder
        self.writes = True
        """Of several processes that share the weights out, `export` is called by all and written by one."""
        self.parameters: dict[str, torch.nn.Parameter] = dict(transformer.named_parameters())

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the whole transformer as ComfyUI's single files hold it, and where that is wanted as diffusers loads
        it, in `<path without ending>/transformer`. Raises RunFailed when the disk refuses."""
        state = {name: whole(parameter.detach()).to("cpu", dtype) for name, parameter in self.parameters.items()}
        if not self.writes:
            return
        if self.with_folder:
            self._export_folder(path.with_suffix(""), state)
        write_tensors(path, dict(to_stored(self.layout, state)), metadata)

    def _export_folder(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        from huggingface_hub import save_torch_state_dict

        remove(folder)
        with replacing(folder) as temporary:
            part = temporary / "transformer"
            self.transformer.save_config(part)
            save_torch_state_dict(dict(state), part, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the transformer has the values of the exported file."""
        with swapped_values(self.parameters, {name: p.detach().to(dtype) for name, p in self.parameters.items()}):
            yield
