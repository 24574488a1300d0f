"""Runs test files on fake cuda, in this process, which loads the shim before torch.

python -m tests.fake_cuda tests/fake_cuda/check_card.py [PYTEST'S OPTIONS]
"""

from __future__ import annotations

import sys

from . import shim


def main() -> int:
    shim.load()
    import pytest

    # The files are no test_*.py: the suite, whose processes have torch already, must not collect them by itself.
    return pytest.main(["-n", "0", "-p", "no:cacheprovider", "-W", "ignore", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
