"""log.jsonl: one line per step, held-out loss and sample."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .run_state import is_count

NUMBERS = {"step": ("loss", "seconds"), "validation": ("loss",)}
"""Fields that are finite numbers, by event."""


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a log's lines; returns them, and the number of lines that cannot be read, but for the last one, which a
    crash cuts short."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    lines = [parse_log_line(text) for text in texts]
    return [line for line in lines if line is not None], lines[:-1].count(None)


def parse_log_line(text: str | bytes) -> dict[str, Any] | None:
    """Decode a line of the log; None when it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("event"), str) or not is_count(line.get("step")):
        return None
    numbers = [line.get(name) for name in NUMBERS.get(line["event"], ())]
    return line if all(isinstance(number, float | int) and math.isfinite(number) for number in numbers) else None


def lowest(losses: Iterable[tuple[int, float]]) -> int | None:
    """Return the step of the lowest loss, the first of equal ones; None where there is none."""
    return min(losses, key=lambda point: (point[1], point[0]), default=(None, 0.0))[0]
