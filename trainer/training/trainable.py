"""The trained weights of a run: a LoRA on the frozen transformer, or all of the transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..config.request import RequestParams
from ..config.settings import RunSettings
from ..distributed.fsdp import full_tensor
from ..files import atomic_write, remove
from ..lora.adapter import LoraAdapter
from ..lora.init_lora import InitLora
from ..memory.checkpointing import checkpoint_blocks, uncheckpoint_blocks
from ..memory.model_parts import ModelComponents
from ..memory.placement import compile_blocks
from ..quantization.linear import dequantize_layers
from ..single_file.key_mapping import Layout, marker_tensors, to_stored
from ..tensors import rounded_values, write_tensors
from .rng import example_generator

if TYPE_CHECKING:
    from torch.nn import Parameter

    from ..memory.edit_session import EditSession
    from ..models.edit_model import EditModel


class Trainable(Protocol):
    """Port: the trained weights of a run."""

    parameters: dict[str, Parameter]
    """Parameters by name. float32; in a full fine-tune with adafactor the compute dtype."""

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the weights file. Raises RunFailed when the disk refuses."""
        ...

    def exported_values(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Context in which the model computes with the values of the exported file."""
        ...


def build_trainable(
    components: ModelComponents,
    params: RequestParams,
    settings: RunSettings,
    init_lora: InitLora | None = None,
    writes: bool = True,
) -> Trainable:
    """Load the transformer and make it trainable: frozen with a new or an initial LoRA, or all of it.

    Places it as the plan says, sharded over all processes where the plan says so (collective). `writes`: this process
    writes the exported file.
    """
    transformer, plan = components.transformer(), components.plan
    if params.use_lora:
        assert not (plan.modulation_on_host and settings.lora_targets == "all-linear"), "modulation is trained"
        start = init_lora.take_tensors() if init_lora is not None else {}
        targets = components.model.family.lora_targets(settings.lora_targets, transformer)
        seed = example_generator(settings.seed, "lora").initial_seed()
        trainable = LoraAdapter(transformer, targets, params.lora_rank, params.lora_alpha, seed, start)
    else:
        assert not (plan.modulation_on_host or plan.streamed), "nothing is frozen"
        trainable = FullTransformer(
            transformer,
            components.model.family.layout(transformer),
            with_folder=settings.save_layout == "single_file+diffusers",
            dtype=components.dtype if settings.optimizer == "adafactor" else torch.float32,
            writes=writes,
            marker=components.model.family.variant.marker,
        )
    checkpoint_blocks(transformer, plan)
    if plan.compile:
        compile_blocks(transformer)
    if plan.sharded:
        components.placement().shard(replicated=trainable.parameters.values() if params.use_lora else ())
    components.placement().to(components.device)
    if plan.sharded and isinstance(trainable, FullTransformer):
        trainable.parameters = dict(transformer.named_parameters())  # sharding has replaced them
    return trainable


def hand_over_base(trainable: Trainable, components: ModelComponents, session: EditSession, model: EditModel) -> None:
    """Give the base that a LoRA was trained on to a session for edits with `model`; the LoRA is in its file.

    A full fine-tune, and a base that is compiled or sharded, are not what an edit would load: they are left alone.
    """
    if isinstance(trainable, LoraAdapter) and not components.plan.compile and not components.plan.sharded:
        transformer = components.transformer()
        trainable.remove(transformer)
        uncheckpoint_blocks(transformer)
        session.adopt(model, components)


class FullTransformer:
    """All weights of a transformer, trained."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        layout: Layout,
        with_folder: bool = False,
        dtype: torch.dtype = torch.float32,
        writes: bool = True,
        marker: str = "",
    ) -> None:
        """Dequantize the weights and convert them to `dtype`.

        `layout` is that of the exported file, and `marker` the empty tensor that marks it; `with_folder` exports a
        diffusers folder beside it. With `writes` false `export` gathers sharded weights with the other processes but
        leaves the writing to them.
        """
        dequantize_layers(transformer, dtype)
        transformer.to(dtype=dtype).requires_grad_(True)
        self.transformer = transformer
        self.layout = layout
        self.with_folder = with_folder
        self.writes = writes
        self.marker = marker
        self.parameters: dict[str, Parameter] = dict(transformer.named_parameters())

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the transformer in the layout of ComfyUI's single files, and with a folder also for diffusers, in
        `<path without suffix>/transformer`. Collective when sharded. Raises RunFailed when the disk refuses."""
        state = {name: full_tensor(parameter.detach()).to("cpu", dtype) for name, parameter in self.parameters.items()}
        if not self.writes:
            return
        if self.with_folder:
            self._export_folder(path.with_suffix(""), state)
        write_tensors(path, dict(to_stored(self.layout, state)) | marker_tensors(self.marker), metadata)

    def _export_folder(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        from diffusers.configuration_utils import ConfigMixin
        from huggingface_hub import save_torch_state_dict

        assert isinstance(self.transformer, ConfigMixin)
        remove(folder)
        with atomic_write(folder) as temporary:
            part = temporary / "transformer"
            self.transformer.save_config(part)
            save_torch_state_dict(dict(state), part, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Context in which the transformer has the values of the exported file."""
        with rounded_values(self.parameters, dtype):
            yield
