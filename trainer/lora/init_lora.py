"""The LoRA file that a training starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from ..config.request import RequestParams
from ..config.settings import RunSettings
from ..errors import BadInput
from ..paths import typed_file
from ..single_file.fingerprint import fingerprint_files
from .adapter import lora_notes, read_lora
from .scales import PREFIX, peft_config

if TYPE_CHECKING:
    from ..models.edit_model import EditModel
    from ..models.family import Family


class InitLora:
    """A LoRA file to start from, read and checked against the model and the training."""

    def __init__(self, fingerprint: str, tensors: Mapping[str, torch.Tensor], notices: list[str]) -> None:
        """`tensors` are float32 `[rank, in]` and `[out, rank]` in the portable form."""
        self.fingerprint = fingerprint
        """Hash of the file's content, wherever it lies."""
        self.notices = notices
        """Sentences on parts of the file that are left out."""
        self._tensors = dict(tensors)

    def take_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors, float32 `[rank, in]` and `[out, rank]` in the portable form, and free them here."""
        tensors, self._tensors = self._tensors, {}
        return tensors


def open_init_lora(model: EditModel, params: RequestParams, settings: RunSettings) -> InitLora | None:
    """Read the LoRA file that the settings name; None when they name none. Loads no weights of the model.

    Raises BadInput when the file does not exist or the training cannot start from it.
    """
    if not settings.init_lora:
        return None
    if not params.use_lora:
        raise BadInput("init_lora: a full fine-tune (use_lora false) has no LoRA to start from; leave init_lora empty.")
    path = typed_file(settings.init_lora, "init_lora")
    transformer = model.empty_transformer()
    try:
        tensors = read_lora(path, model.family, transformer)
    except BadInput as error:
        raise BadInput(f"init_lora: {error}") from None
    kept = _without_idle_layers(tensors, model.family, transformer)
    _check_rank(path, kept, params)
    _check_targets(path, kept, model.family, transformer, settings)
    notices = lora_notes(path)
    if idle := len({_module(name) for name in tensors} - {_module(name) for name in kept}):
        notices.append(f"{path.name}: {idle} modules that have no effect on images are ignored.")
    config = peft_config(path)
    files = {"init_lora": path} | ({"config": config} if config else {})
    return InitLora(fingerprint_files(files), kept, notices)


def _without_idle_layers(
    tensors: Mapping[str, torch.Tensor], family: Family, transformer: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """Drop the tensors of layers whose output the model does not use."""
    idle = re.compile(family.idle_layers(transformer))
    return {name: tensor for name, tensor in tensors.items() if not idle.fullmatch(_module(name))}


def _check_rank(path: Path, tensors: Mapping[str, torch.Tensor], params: RequestParams) -> None:
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    if rank > params.lora_rank:
        raise BadInput(
            f"init_lora: {path} has rank {rank}, above lora_rank {params.lora_rank}; set lora_rank to {rank}."
        )


def _check_targets(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    family: Family,
    transformer: torch.nn.Module,
    settings: RunSettings,
) -> None:
    """Raise BadInput when the file has modules that the training does not train."""
    modules = {_module(name) for name in tensors}
    outside = {
        targets: sorted(name for name in modules if not re.fullmatch(family.lora_targets(targets, transformer), name))
        for targets in get_args(RunSettings.model_fields["lora_targets"].annotation)
    }
    untrained = outside[settings.lora_targets]
    if not untrained:
        return
    wider = next((targets for targets in ("attention+mlp", "all-linear") if not outside[targets]), None)
    raise BadInput(
        f'init_lora: {path} has {len(untrained)} modules that lora_targets "{settings.lora_targets}" does not train, '
        f"such as {untrained[0]}; "
        + (f'set lora_targets to "{wider}".' if wider else f"{outside['all-linear'][0]} cannot be trained at all.")
    )


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]
