"""run.json: which run a folder holds, how it computes, and whether it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

from ..config.settings import Precision
from ..errors import BadInput, DamagedFile
from ..files import read_record, write_record

ARITHMETIC: Mapping[str, Sequence[str]] = {
    "precision": get_args(Precision),
    "dtype": ("float32", "bfloat16", "float16"),
    "quantize_activations": ("on", "off"),
    "compile": ("on", "off"),
}
"""Fields of run.json that say how the run computes, with their values. A person may change them: they are not part of
its checksum."""

EXPORTED_BESIDE = ("best_weights", "ema_weights", "best_ema_weights")
"""Fields of run.json that name files which a finished run has exported beside its weights."""

UNKNOWN = "unknown"
"""Fingerprint of a run that nothing in its folder tells; no run has it."""


def write_run_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write or replace run.json atomically. Raises RunFailed."""
    write_record(path, state, unchecked=ARITHMETIC)


def read_run_state(path: Path) -> dict[str, Any]:
    """Read and check run.json: fingerprint, steps, finished_step, weights, and the fields of ARITHMETIC.

    Raises FileNotFoundError, DamagedFile, and BadInput for the format of a later release.
    """
    state = read_record(path, unchecked=ARITHMETIC)
    if not isinstance(state.get("fingerprint"), str):
        raise DamagedFile("has no fingerprint")
    for name in ("steps", "finished_step"):
        if name in state and not is_count(state[name]):
            raise DamagedFile(f"has an impossible {name}")
    if "finished_step" in state and not _is_file_name(state.get("weights")):
        raise DamagedFile("has an impossible name of the weights")
    for name in EXPORTED_BESIDE:
        if name in state and not _is_file_name(state[name]):
            raise DamagedFile(f"has an impossible {name}")
    for name, values in ARITHMETIC.items():
        if name in state and state[name] not in values:
            raise BadInput(
                f"{path}: {name} {json.dumps(state[name])[:80]} is unknown; it can be {', '.join(values)}. Correct it, "
                "or name another folder for the run."
            )
    return state


def is_count(value: object) -> bool:
    """Tell whether a decoded JSON value is a number of steps."""
    return type(value) is int and 0 <= value < 2**63


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and PurePath(value).name == value
