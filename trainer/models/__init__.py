"""The registry of model families. Importing it loads neither torch nor diffusers.

A new family is one module and one line of `FAMILIES`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput

if TYPE_CHECKING:
    from .family import Family


__all__ = ["CONFIGS", "FAMILIES", "family_class", "open_model"]


FAMILIES: dict[str, tuple[str, ...]] = {
    "flux_kontext.FluxKontext": ("black-forest-labs/FLUX.1-Kontext-dev", "tiny/flux-kontext"),
    "qwen_image_edit.QwenImageEdit": ("Qwen/Qwen-Image-Edit", "tiny/qwen-image-edit"),
}
"""Module and class of each family: its base models."""


CONFIGS = Path(__file__).parent / "configs"
"""The published models' folders in the pipeline's layout, without any weights."""


def family_class(base_model: str) -> type[Family]:
    """The family of a base model. Raises BadInput for a base model that no family has."""
    for path, base_models in FAMILIES.items():
        if base_model in base_models:
            module, name = path.split(".")
            return getattr(import_module(f".{module}", __name__), name)
    known = ", ".join(name for names in FAMILIES.values() for name in names)
    raise BadInput(f'base_model: "{base_model}" is not known; use one of {known}.')


def __getattr__(name: str) -> object:
    if name == "open_model":
        from .edit_model import open_model

        return open_model
    raise AttributeError(name)
