"""Both models at full size, with random weights, under plans for cards of several sizes: rows of docs/speed.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    ("kontext", 0, ""),
    ("kontext", 12, "int8"),
    ("qwen", 24, "int8"),
    ("qwen", 16, "int8"),
]
"""Model, gigabytes of the card (0: this card) and precision; a data center card would choose bf16 where it can."""


@pytest.mark.parametrize(("model", "gigabytes", "precision"), CASES)
def test_a_plan_holds(
    model: str, gigabytes: int, precision: str, record_property: Callable[[str, object], None]
) -> None:
    options = ["--precision", precision, "--quantize-activations", "on"] if precision else []
    if gigabytes:
        options += ["--cap-gb", str(gigabytes)]
    command = [sys.executable, "tests/benchmarks/step.py", "--model", model, "--steps", "3", *options]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # One: see tests/.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    record_property("figure", done.stdout)
    found = re.search(r"peak: ([\d.]+) GB, ([\d.]+) reserved by the allocator, planned ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    allocated, reserved, planned = map(float, found.groups())
    assert allocated <= planned
    assert reserved <= planned
