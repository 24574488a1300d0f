"""The trainer on a fake CUDA card; see tests/fake_cuda/card.py. Each file of checks runs in a process of its own,
because the fake card must be loaded before torch."""

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


@pytest.mark.parametrize("checks", sorted(path.name for path in (ROOT / "tests" / "fake_cuda").glob("check_*.py")))
def test_on_fake_cuda(checks: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda", f"tests/fake_cuda/{checks}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
