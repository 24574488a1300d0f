"""What becomes of a kept model in each state of ComfyUI's memory management, by ComfyUI's own code in one process.

`python kept_in_states.py COMFYUI FOLDER PACK WEIGHTS` prints a JSON object by state; FOLDER has the pack as PACK, and
WEIGHTS is a copy of the embedded Kontext. ComfyUI refuses the options for these states together with `--cpu`, so that
they are set here: ComfyUI is told that its device is `cuda` and how much of it is free, and the edits compute on the
CPU.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

comfyui, folder, pack, weights = sys.argv[1:]
sys.argv[1:] = []
sys.path[:0] = [comfyui, folder]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
importlib.import_module("utils.extra_config")  # before other modules of that name, as ComfyUI's own start does

import comfy.model_management as memory  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

CARD = torch.device("cuda", 0)
NEEDED, WHOLE = 5e9, 20e9
LITTLE = NEEDED - 1e6
"""Less than is needed by less than the kept model takes: of its own models ComfyUI then unloads a part."""


def ours(module: str) -> ModuleType:
    return importlib.import_module(f"{pack}.{module}")


def drawn(kept: Any) -> bytes:
    """An edit on the CPU by what is kept."""
    model = ours("trainer.models.edit_model").open_model("tiny/flux-kontext", Path(weights))
    picture = Image.new("RGB", (64, 64), "orange")
    events = ours("trainer.inference").edit(
        model, picture, "make it red", steps=2, device=torch.device("cpu"), session=kept.session
    )
    return ours("trainer.events").drain(events).tobytes()


def listed() -> list[str]:
    return [type(loaded.model.model).__name__ for loaded in memory.current_loaded_models]


def free_bytes(free: float) -> Any:
    """Context in which ComfyUI's device has that many free bytes, none of them in torch's cache."""
    answer = lambda dev=None, torch_free_too=False: (free, 0) if torch_free_too else free  # noqa: E731
    return patch.object(memory, "get_free_memory", answer)


def asked(kept: Any, free: float) -> dict[str, Any]:
    """What ComfyUI does with the kept model when it needs room for a model of its own."""
    moved: list[int] = []
    with free_bytes(free), patch.object(kept.session, "to_host", lambda: moved.append(kept.session.device_bytes)):
        memory.free_memory(NEEDED, CARD)
    return {"moved": moved, "listed": listed()}


def report(state: memory.VRAMState) -> dict[str, Any]:
    with patch.object(memory, "vram_state", state), patch.object(memory, "get_torch_device", lambda: CARD):
        kept = ours("nodes.kept_model").KeptModel()
        first = drawn(kept)
        with free_bytes(WHOLE):
            memory.load_models_gpu([kept.patcher])
        found = {"size": kept.session.device_bytes, "registered": listed(), "with room": asked(kept, WHOLE)}
        found["without room"] = asked(kept, LITTLE)
        with ours("tests.opened_files").opened_files(Path(weights)) as opened:
            found["same image"] = drawn(kept) == first
        found["opened"] = sorted(opened)
    return found


def host_room() -> dict[str, int]:
    """Bytes that are kept after a native model of 10 GB was asked for, by the host's free memory."""
    module, left = ours("nodes.kept_model"), {}
    kept = module.KeptModel()
    drawn(kept)
    for available in (20_000_000_000, 11_000_000_000):
        with patch.object(ours("trainer.memory.edit_session").psutil, "virtual_memory") as asked_for:
            asked_for.return_value = SimpleNamespace(available=available)
            module.make_host_room(10_000_000_000)
        left[str(available)] = kept.session.device_bytes
    return left


found = {state.name: report(state) for state in memory.VRAMState}
print(json.dumps(found | {"host": host_room()}))
