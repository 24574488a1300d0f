"""Settings of torch's CUDA allocator, which it reads from the environment at its first allocation."""

from __future__ import annotations

import os
import sys

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables in the order in which torch looks for them. The second is the newer name, from torch 2.9 on."""


EXPANDABLE_SEGMENTS = "expandable_segments:True"


def use_expandable_segments() -> None:
    """Make the allocator grow its segments, which leaves fewer gaps, unless the user's environment has settings of its
    own. Linux only: on Windows torch has no such segments."""
    if sys.platform == "linux" and not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = EXPANDABLE_SEGMENTS


def has_expandable_segments() -> bool:
    """Tell whether the environment makes the allocator grow its segments."""
    settings = next((os.environ[name] for name in VARIABLES if name in os.environ), "")
    return sys.platform == "linux" and EXPANDABLE_SEGMENTS in settings
