"""The ladder of rooms: every import inside the package goes to its own room or to a lower floor."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pytest

from .source_tree import room_of, sources

LADDER = (
    ("compiled", "errors", "events", "modules", "threads", "trainer"),
    ("families",),
    ("config", "files", "paths"),
    ("data", "quantization", "tensors"),
    ("single_file", "device", "blocks", "packing"),
    ("models", "distributed"),
    ("lora",),
    ("memory",),
    ("encoding", "inference"),
    ("training",),
    ("hub", "tracking"),
    ("tiny", "nodes"),
    ("cli",),
    ("__main__",),
)
"""Rooms from the lowest floor up; "trainer" is the package itself. Rooms on one floor do not import each other."""
FLOORS = {room: floor for floor, rooms in enumerate(LADDER) for room in rooms}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server"}


def imports(path: PurePosixPath, text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and absolute target of every import of a module, wherever it stands: at the top, in a function, or under
    TYPE_CHECKING."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, tuple((node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = base + tuple(node.module.split(".") if node.module else ())
            # `from .. import config` names a room, `from ..config import request` is in one already.
            yield from ((node.lineno, target if len(target) > 1 else (*target, a.name)) for a in node.names)


def faults(modules: Mapping[PurePosixPath, str]) -> list[str]:
    """Imports that break the ladder, and ladders that lack a room."""
    found = []
    for path, text in modules.items():
        own = room_of(path.with_suffix("").parts if path.name != "__init__.py" else path.parent.parts)
        if own not in FLOORS:
            found.append(f"{path}: the room {own} has no floor in LADDER")
            continue
        for line, target in imports(path, text):
            if target[0] in COMFYUI and path.parts[0] == "trainer":
                found.append(f"{path}:{line} imports ComfyUI's {target[0]}")
            if target[0] not in ("trainer", "nodes"):
                continue
            other = room_of(target)
            if other != own and FLOORS.get(other, len(LADDER)) >= FLOORS[own]:
                found.append(f"{path}:{line} imports {'.'.join(target)}, which is not on a lower floor")
    return found


def absolute_imports_of_itself(modules: Mapping[PurePosixPath, str]) -> list[str]:
    """Absolute imports of the pack's own packages. ComfyUI loads the pack under a name that is its path, so only
    relative ones find it; `nodes` would be ComfyUI's own module."""
    return [
        f"{path}:{node.lineno}"
        for path, text in modules.items()
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("trainer", "nodes") for a in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ("trainer", "nodes"))
    ]


def test_every_import_points_down() -> None:
    assert faults(sources()) == []


def test_every_room_of_the_ladder_is_there() -> None:
    rooms = {room_of(path.with_suffix("").parts) for path in sources() if path.name != "__init__.py"}
    assert rooms | {"trainer"} == set(FLOORS)


def test_imports_of_the_pack_are_relative() -> None:
    assert absolute_imports_of_itself(sources()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("trainer/data/dataset.py", "from ..training.loop import train"),
        ("trainer/data/dataset.py", "def later():\n    from ..models.family import Family"),
        ("trainer/data/dataset.py", "if TYPE_CHECKING:\n    from ..quantization.formats import Quantization"),
        ("trainer/events.py", "from . import device"),
        ("trainer/models/family.py", "from ..lora import adapter"),
        ("trainer/tiny/make.py", "from ...nodes import train"),
        ("trainer/training/loop.py", "import comfy.model_management"),
        ("trainer/attic/things.py", "import os"),
    ],
)
def test_a_planted_import_is_found(path: str, line: str) -> None:
    planted = PurePosixPath(path)
    (fault,) = faults({planted: f"{sources().get(planted, '')}\n{line}\n"})
    assert fault.startswith(path)


def test_a_planted_absolute_import_is_found() -> None:
    planted = PurePosixPath("trainer/files.py")
    assert absolute_imports_of_itself({planted: "from trainer.errors import BadInput"}) == ["trainer/files.py:1"]
