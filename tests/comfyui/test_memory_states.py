"""Kept models under --lowvram, --novram, --highvram and the other states of ComfyUI's memory management."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .server import PACK, find_python

STATES = ("DISABLED", "NO_VRAM", "LOW_VRAM", "NORMAL_VRAM", "HIGH_VRAM", "SHARED")
SCRIPT = Path(__file__).with_name("kept_in_states.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")


@pytest.fixture(scope="module")
def found(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a process of ComfyUI's code."""
    folder = tmp_path_factory.mktemp("states")
    pack = folder / "pack_of_any_name"
    pack.symlink_to(PACK, target_is_directory=True)
    weights = shutil.copytree(PACK / "trainer" / "tiny" / "flux-kontext", folder / "weights")
    command = [find_python(comfyui), str(SCRIPT), str(comfyui), str(folder), pack.name, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("state", STATES)
def test_no_state_changes_an_image_or_reads_weights_again(found: dict[str, Any], state: str) -> None:
    assert found[state]["same image"]
    assert found[state]["opened"] == []


@pytest.mark.parametrize("state", STATES)
def test_comfyui_takes_a_kept_model_off_the_device_when_it_needs_the_room(found: dict[str, Any], state: str) -> None:
    report = found[state]
    assert report["size"] > 0
    assert report["registered"] == ["EditTrainerModel"]
    assert report["with room"] == {"moved": [], "listed": ["EditTrainerModel"]}
    # ComfyUI's own models stay on the device with --highvram too.
    moved = [] if state == "HIGH_VRAM" else [report["size"]]
    assert report["without room"] == {"moved": moved, "listed": []}


def test_a_native_model_that_host_memory_has_no_room_for_takes_the_place_of_a_kept_one(found: dict[str, Any]) -> None:
    with_room, without = found["host"].values()
    assert with_room == found["NORMAL_VRAM"]["size"]
    assert without == 0
