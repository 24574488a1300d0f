"""Optional packages, which a run needs only for some of its settings."""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType

from ..errors import BadInput


def require_package(requirement: str, feature: str) -> ModuleType:
    """Import the package of a pip requirement such as `bitsandbytes>=0.46`. Raises BadInput when it is not installed,
    saying that `feature` needs it."""
    name = re.split(r"\W", requirement, maxsplit=1)[0]
    try:
        return import_module(name)
    except ImportError:
        raise BadInput(
            f"{feature} needs the package {name}, which is not installed. Install it with "
            f'`python -m pip install "{requirement}"`.'
        ) from None
