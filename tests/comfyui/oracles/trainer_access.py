"""The pack under test, from inside the server that has loaded it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def trainer(module: str) -> ModuleType:
    """A module of the pack's trainer, as ComfyUI has loaded it."""
    return _module(f"trainer.{module}")


def nodes(module: str) -> ModuleType:
    """A module of the pack's nodes."""
    return _module(f"nodes.{module}")


def _module(path: str) -> ModuleType:
    pack = next(name for name in sys.modules if name.endswith(".trainer.config.request")).removesuffix(
        ".trainer.config.request"
    )
    return importlib.import_module(f"{pack}.{path}")
