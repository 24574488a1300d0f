"""What a choice in Load Edit Base Model amounts to: where the weights come from, and what they are trained on."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from ..trainer.models.sources import EMBEDDED, EditModel
from .host import device_line

DOWNLOAD_GB = {"black-forest-labs/FLUX.1-Kontext-dev": 34, "Qwen/Qwen-Image-Edit": 58}
"""What the hub's folders hold, about."""


def describe(model: EditModel) -> list[str]:
    """A line each: the weights and where they are, single files that take their place, and the device."""
    files = {name: path for part in ("transformer", "vae", "text") for name, path in model.files.of(part).items()}
    return [_weights(model), *(f"{name}: {_file(path)}" for name, path in files.items()), device_line()]


def _weights(model: EditModel) -> str:
    if model.folder is not None:
        size = sum(path.stat().st_size for path in model.folder.rglob("*.safetensors"))
        where = "part of the pack" if model.folder.is_relative_to(EMBEDDED) else str(model.folder)
        return f"{where}, {_size(size)}"
    cached = try_to_load_from_cache(model.base_model, "model_index.json")
    if isinstance(cached, str):
        return "in the Hugging Face cache of this machine"
    return (
        f"downloaded from the Hugging Face hub on first use, about {DOWNLOAD_GB[model.base_model]} GB; with clip and "
        "vae connected, a file of models/diffusion_models that is surely this model's is taken instead"
    )


def _file(path: Path) -> str:
    return f"{path.name}, {_size(path.stat().st_size)}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
