"""The trainer on a fake CUDA card; see tests/fake_cuda/card.py. The checks run in a process of their own, because the
fake card must be loaded before torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..fake_cuda import shim

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing())),
]


def test_on_fake_cuda() -> None:
    checks = sorted(str(path) for path in (ROOT / "tests" / "fake_cuda").glob("check_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda", *checks],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
