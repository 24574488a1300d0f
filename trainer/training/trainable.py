"""What is trained: a LoRA on the frozen transformer, or all of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..config.request import TrainingParams
from ..config.settings import RunSettings
from ..distributed.processes import SingleProcess
from ..lora.adapter import LoraAdapter
from ..lora.init_lora import read_init_lora
from ..memory.checkpointing import checkpoint_blocks
from ..memory.model_parts import ModelComponents
from ..memory.placement import compile_blocks
from .rng import example_generator

if TYPE_CHECKING:
    from torch.nn import Parameter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..distributed.fsdp import full_tensor
from ..files import atomic_write, remove
from ..quantization.linear import dequantize_layers
from ..single_file.key_mapping import Layout, to_stored
from ..tensors import write_tensors

if TYPE_CHECKING:
    from diffusers import ModelMixin
from ..tensors import swapped_values


class Trainable(Protocol):
    """The trained weights of a run."""

    parameters: dict[str, Parameter]
    """By name. float32, but for a full fine-tune with adafactor, whose weights are in the computation's format."""

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the weights file that is handed on."""
        ...

    def exported_values(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Inside, the model computes with the exported file's values."""
        ...


def build_trainable(
    components: ModelComponents, params: TrainingParams, settings: RunSettings, processes: SingleProcess | None = None
) -> Trainable:
    """Make the transformer ready for training: frozen with a LoRA, fresh or from a file, or all of it trainable in
    place. Of a full fine-tune by several processes each holds a part of every tensor."""
    transformer = components.transformer()
    if params.use_lora:
        assert not (components.plan.modulation_on_host and settings.lora_targets == "all-linear"), (
            "modulation is trained"
        )
        targets = components.model.family.lora_targets(settings.lora_targets, transformer)
        seed = example_generator(settings.seed, "lora").initial_seed()
        start = read_init_lora(components.model.family, transformer, params, settings)
        trainable: Trainable = LoraAdapter(transformer, targets, params.lora_rank, params.lora_alpha, seed, start)
    else:
        assert not (components.plan.modulation_on_host or components.plan.streamed), "nothing is frozen"
        trainable = FullTransformer(
            transformer,
            components.model.family.layout(transformer),
            settings.save_layout == "single_file+diffusers",
            components.dtype if settings.optimizer == "adafactor" else torch.float32,
        )
    checkpoint_blocks(transformer, components.plan)
    if components.plan.compile:
        compile_blocks(transformer)
    if components.plan.sharded:
        components.placement().shard(replicated=trainable.parameters.values() if params.use_lora else ())
    components.placement().to(components.device)
    if components.plan.sharded and isinstance(trainable, FullTransformer):
        trainable.parameters = dict(transformer.named_parameters())
        trainable.writes = processes is None or processes.is_main
    return trainable


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
        state = {name: full_tensor(parameter.detach()).to("cpu", dtype) for name, parameter in self.parameters.items()}
        if not self.writes:
            return
        if self.with_folder:
            self._export_folder(path.with_suffix(""), state)
        write_tensors(path, dict(to_stored(self.layout, state)), metadata)

    def _export_folder(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        from huggingface_hub import save_torch_state_dict

        remove(folder)
        with atomic_write(folder) as temporary:
            part = temporary / "transformer"
            self.transformer.save_config(part)
            save_torch_state_dict(dict(state), part, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the transformer has the values of the exported file."""
        with swapped_values(self.parameters, {name: p.detach().to(dtype) for name, p in self.parameters.items()}):
            yield
