"""The pack's snapshot classes, loaded from their file alone: importing the nodes needs a ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields
from typing import Any

from .server import PACK

_SPEC = importlib.util.spec_from_file_location("edit_trainer_run_snapshot", PACK / "nodes" / "run_snapshot.py")
assert _SPEC and _SPEC.loader
run_snapshot = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run_snapshot)

LiveSnapshot = run_snapshot.LiveSnapshot
RunSnapshot = run_snapshot.RunSnapshot
RunSummary = run_snapshot.RunSummary


def first_message(**values: Any) -> dict[str, Any]:
    """A run's first message to the page, for a node whose id the page puts in."""
    training = {"state": "running", "phase": "training", "done": 1, "total": 1, "seconds": 1.0, "seconds_left": 0}
    snapshot = LiveSnapshot(**{"id": "first", "node_id": "", "prompt_id": ""} | training | values)
    return snapshot.message(dict.fromkeys(run_snapshot.GROWING, 0))


def keys(snapshot: type) -> set[str]:
    """Names of a class's fields."""
    return {entry.name for entry in fields(snapshot)}
