"""Markers by folder, figures and left-out tests in the summary, and one thread a test process: two run at a time, and
the small models gain nothing from more."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # Half of the time of importing torch, diffusers and the tests: see pytest_collection_finish.

FOLDER_MARKERS = {"comfyui": ("comfyui", "slow"), "browser": ("browser", "slow"), "gpu": ("gpu", "slow")}
LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests of the folders whose every test needs something more than torch."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        for marker in FOLDER_MARKERS.get(folder, ()):
            item.add_marker(marker)
        if folder == "gpu":
            item.add_marker(pytest.mark.xdist_group("gpu"))  # One card: its tests run one after the other.


def pytest_collection_finish() -> None:
    """Collect garbage from now on, and look no more at what is imported."""
    gc.enable()
    gc.freeze()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the slow tests that are left out."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.config.stash[LEFT_OUT] = item.config.stash.get(LEFT_OUT, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the main process, which collects nothing itself, what this worker of pytest-xdist has counted."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over a worker's count; every worker collects all tests, so that any of them has the whole."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[LEFT_OUT] = max(left_out, node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures that tests recorded as the property `figure`, and name the tests that `-m` left out."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "figure" and report.when == "call":
                    terminalreporter.write_line(str(value))
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out and config.option.markexpr:
        terminalreporter.write_line(
            f"{left_out} slow tests left out by -m {config.option.markexpr!r} (they train, load models or start "
            "processes): run pytest without -m to run all."
        )
