"""Size of functions and constructors in the rooms that a reader of the training starts with."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

import pytest

from .source_tree import Function, Modules, definitions, room_of, syntax_trees

ROOMS = {"training", "encoding"}
MAX_LINES = 60
MAX_ARGUMENTS = 6

MODULES = syntax_trees()


def oversized(modules: Modules) -> list[str]:
    """Functions with too many lines, and constructors with too many arguments beside `self`."""
    found = []
    for definition in definitions(modules):
        node = definition.node
        if room_of(definition.path.with_suffix("").parts) not in ROOMS or not isinstance(node, Function):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_LINES:
            found.append(f"{definition} has {lines} lines")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]
        if node.name == "__init__" and len(arguments) > MAX_ARGUMENTS:
            found.append(f"{definition} has {len(arguments)} arguments")
    return found


def test_functions_are_short_and_constructors_take_few_arguments() -> None:
    assert oversized(MODULES) == []


def planted(lines: int, arguments: int) -> str:
    names = ", ".join(f"a{number}" for number in range(arguments))
    body = "\n        ".join(["pass"] * (lines - 1))
    return f"class Planted:\n    def __init__(self, {names}):\n        {body}\n"


@pytest.mark.parametrize(
    ("lines", "arguments", "fault"), [(60, 6, None), (61, 6, "has 61 lines"), (60, 7, "has 7 arguments")]
)
def test_a_planted_function_is_found(lines: int, arguments: int, fault: str | None) -> None:
    text = planted(lines, arguments)
    found = oversized({PurePosixPath("trainer/training/planted.py"): ast.parse(text)})
    assert [fault is not None and fault in line for line in found] == ([True] if fault else [])
    assert oversized({PurePosixPath("trainer/models/planted.py"): ast.parse(text)}) == []
