"""The registered model families, and look-ups by base model."""

from __future__ import annotations

from ..errors import BadInput
from .info import FamilyInfo, Variant
from .records import FLUX2_KLEIN, FLUX_KONTEXT, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS

FAMILIES: list[FamilyInfo] = [FLUX_KONTEXT, QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS, FLUX2_KLEIN]
"""A family whose files also match another family's patterns comes before it. Tests append records of their own."""


def base_model_names() -> list[str]:
    """Names of all base models in the order of menus: alphabetical, embedded models last."""
    return [variant.name for variant in sorted(_variants(), key=lambda variant: (variant.embedded, variant.name))]


def find_family(base_model: str) -> FamilyInfo:
    """The family of a base model. Raises BadInput for an unknown base model."""
    for info in FAMILIES:
        if any(variant.name == base_model for variant in info.variants):
            return info
    raise BadInput(f'base_model: "{base_model}" is not known; use one of {", ".join(base_model_names())}.')


def find_variant(base_model: str) -> Variant:
    """The base model of this name. Raises BadInput for an unknown one."""
    return find_family(base_model).variant(base_model)


def _variants() -> list[Variant]:
    return [variant for info in FAMILIES for variant in info.variants]
