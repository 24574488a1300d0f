"""Describes a choice in Load Edit Base Model: the source of the weights, the encoders, the device and the plan."""

from __future__ import annotations

from pathlib import Path

from comfy.model_management import get_torch_device
from huggingface_hub import try_to_load_from_cache

from ..trainer.config.columns import COLUMN_FIELDS
from ..trainer.config.request import TrainingParams
from ..trainer.config.settings import RunSettings
from ..trainer.device import query_device
from ..trainer.errors import BadInput
from ..trainer.memory.planner import make_plan
from ..trainer.models.edit_model import EditModel
from .host import device_line


def describe(model: EditModel, connected: bool) -> list[str]:
    """Lines about the weights, single files, connected encoders, the device, and the plan of a LoRA training with
    default settings."""
    files = {name: path for part in ("transformer", "vae", "text") for name, path in model.files.of(part).items()}
    ports = ["texts and pictures are encoded by the clip and the vae that are connected"] if connected else []
    return [
        *([] if connected and files else [_weights(model, connected)]),
        *(f"{name}: {_file(path)}" for name, path in files.items()),
        *ports,
        device_line(),
        plan_line(model),
    ]


def plan_line(model: EditModel) -> str:
    """The plan of a LoRA training with default settings in one line, or the reason why none fits."""
    columns = dict.fromkeys(COLUMN_FIELDS, "column")
    device_info = query_device(get_torch_device())
    try:
        return make_plan(model, TrainingParams(**columns), RunSettings(), device_info).line()
    except BadInput as error:
        return str(error)


def _weights(model: EditModel, connected: bool) -> str:
    if model.folder is not None:
        parts = {name for names in model.family.info.subfolders.values() for name in names}
        folders = [(model.folder_of(part) or model.folder) / part for part in parts]
        size = sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))
        where = "part of the pack" if model.folder == model.family.variant.folder else str(model.folder)
        return f"{where}, {_size(size)}"
    cached = try_to_load_from_cache(model.base_model, "model_index.json")
    if isinstance(cached, str):
        return "in the Hugging Face cache of this machine"
    if connected:
        instead = "no file in models/diffusion_models is recognized as this model; choose one under transformer"
    else:
        instead = (
            "with clip and vae connected, a file in models/diffusion_models that is recognized as this model is used"
        )
    return f"downloaded from the Hugging Face hub on first use, about {model.family.variant.download_gb} GB; {instead}"


def _file(path: Path) -> str:
    return f"{path.name}, {_size(path.stat().st_size)}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
