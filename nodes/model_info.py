"""What a choice in Load Edit Base Model amounts to: where the weights come from, what they are trained on, and how."""

from __future__ import annotations

from pathlib import Path

from comfy.model_management import get_torch_device
from huggingface_hub import try_to_load_from_cache

from ..trainer.config.request import COLUMN_FIELDS, TrainingParams
from ..trainer.config.settings import RunSettings
from ..trainer.device import query_device
from ..trainer.errors import BadInput
from ..trainer.memory.planner import make_plan
from ..trainer.models.edit_model import EMBEDDED, EditModel
from .host import device_line

DOWNLOAD_GB = {"black-forest-labs/FLUX.1-Kontext-dev": 34, "Qwen/Qwen-Image-Edit": 58}
"""What the hub's folders hold, about."""


def describe(model: EditModel, connected: bool) -> list[str]:
    """A line each: the weights and where they are, single files that take their place, clip and vae where they are
    connected, the device, and how a LoRA would be trained there with everything else left as it is."""
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
    """The plan of a LoRA of default rank, in one line, or why there is none."""
    columns = dict.fromkeys(COLUMN_FIELDS, "column")
    card = query_device(get_torch_device())
    try:
        return make_plan(model, TrainingParams(**columns), RunSettings(), card).line()
    except BadInput as error:
        return str(error)


def _weights(model: EditModel, connected: bool) -> str:
    if model.folder is not None:
        size = sum(path.stat().st_size for path in model.folder.rglob("*.safetensors"))
        where = "part of the pack" if model.folder.is_relative_to(EMBEDDED) else str(model.folder)
        return f"{where}, {_size(size)}"
    cached = try_to_load_from_cache(model.base_model, "model_index.json")
    if isinstance(cached, str):
        return "in the Hugging Face cache of this machine"
    if connected:
        instead = "no file of models/diffusion_models is surely this model's; one can be chosen under transformer"
    else:
        instead = "with clip and vae connected, a file of models/diffusion_models that is surely this model's is taken"
    return f"downloaded from the Hugging Face hub on first use, about {DOWNLOAD_GB[model.base_model]} GB; {instead}"


def _file(path: Path) -> str:
    return f"{path.name}, {_size(path.stat().st_size)}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
