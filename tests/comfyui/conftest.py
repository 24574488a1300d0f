"""A ComfyUI server for the tests, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import Server, find_comfyui, version_of

TEST_PACK = Path(__file__).parent / "oracles"


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI installation to test in."""
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder (and COMFYUI_PYTHON to its interpreter)")
    return found


@pytest.fixture(scope="session")
def version(comfyui: Path) -> tuple[int, ...]:
    """ComfyUI's version."""
    return version_of(comfyui)


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    server = Server(comfyui, tmp_path_factory.mktemp("comfyui"), TEST_PACK)
    yield server
    server.close()
