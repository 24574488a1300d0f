"""The LoRA file that a training goes on from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from ..config.request import TrainingParams
from ..config.settings import RunSettings
from ..errors import BadInput
from ..single_file.fingerprint import fingerprint_files
from .adapter import left_out, read_lora
from .formats import PREFIX

if TYPE_CHECKING:
    from ..models.edit_model import EditModel
    from ..models.family import Family


def init_lora_fingerprint(params: TrainingParams, settings: RunSettings) -> list[str]:
    """Names the content of the file, wherever it lies; empty when there is none.

    Raises BadInput when it is not there, or cannot be used by this training whatever is in it.
    """
    if not settings.init_lora:
        return []
    if not params.use_lora:
        raise BadInput("init_lora: a full fine-tune (use_lora false) has no LoRA to go on from; leave init_lora empty.")
    path = Path(settings.init_lora)
    if not path.is_file():
        raise BadInput(f"init_lora: there is no file {path}.")
    return [fingerprint_files({"init_lora": path})]


def check_init_lora(model: EditModel, params: TrainingParams, settings: RunSettings) -> list[str]:
    """What of the file is not used, in sentences. Loads nothing of the model.

    Raises BadInput when the training cannot go on from the file.
    """
    if not settings.init_lora:
        return []
    transformer = model.empty_transformer()
    tensors = read_lora(Path(settings.init_lora), model.family, transformer)
    modules = {_module(name) for name in tensors}
    idle = len(modules - {_module(name) for name in _starting(tensors, model.family, transformer, params, settings)})
    notes = [left_out(Path(settings.init_lora))]
    if idle:
        notes.append(f"{Path(settings.init_lora).name}: {idle} modules that change no picture are left out.")
    return [note for note in notes if note]


def read_init_lora(
    family: Family, transformer: torch.nn.Module, params: TrainingParams, settings: RunSettings
) -> dict[str, torch.Tensor]:
    """The file's tensors for the trained modules, in the portable form; empty when there is no file.

    Raises BadInput as `check_init_lora` does. The transformer must not have an adapter yet.
    """
    if not settings.init_lora:
        return {}
    tensors = read_lora(Path(settings.init_lora), family, transformer)
    return _starting(tensors, family, transformer, params, settings)


def _starting(
    tensors: dict[str, torch.Tensor],
    family: Family,
    transformer: torch.nn.Module,
    params: TrainingParams,
    settings: RunSettings,
) -> dict[str, torch.Tensor]:
    """The tensors without those of modules that change nothing; every other one has its place in the training."""
    path = settings.init_lora
    idle = re.compile(family.idle_layers(transformer))
    kept = {name: tensor for name, tensor in tensors.items() if not idle.fullmatch(_module(name))}
    modules = {_module(name) for name in kept}
    rank = max(tensor.shape[0] for name, tensor in kept.items() if ".lora_A." in name)
    if rank > params.lora_rank:
        raise BadInput(
            f"init_lora: {path} has rank {rank}, above lora_rank {params.lora_rank}; set lora_rank to {rank}."
        )
    outside = {
        which: sorted(name for name in modules if not re.fullmatch(family.lora_targets(which, transformer), name))
        for which in get_args(RunSettings.model_fields["lora_targets"].annotation)
    }
    if astray := outside[settings.lora_targets]:
        wide = next((which for which in ("attention+mlp", "all-linear") if not outside[which]), None)
        raise BadInput(
            f'init_lora: {path} has {len(astray)} modules that lora_targets "{settings.lora_targets}" does not train, '
            f"such as {astray[0]}; "
            + (f'set lora_targets to "{wide}".' if wide else f"{outside['all-linear'][0]} cannot be trained at all.")
        )
    return kept


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]
