"""Syntax trees of the pack's own modules, for tests that read its code without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Modules = Mapping[PurePosixPath, ast.Module]


def sources() -> dict[PurePosixPath, str]:
    """Source text of every module of the pack, by its path below the root."""
    paths = [path for folder in ("trainer", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {PurePosixPath(path.relative_to(ROOT).as_posix()): path.read_text(encoding="utf-8") for path in paths}


@cache
def syntax_trees() -> Modules:
    """Syntax tree of every module of the pack, by its path below the root."""
    return {path: ast.parse(text) for path, text in sources().items()}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a dotted module name, given in parts."""
    if parts[0] == "nodes":
        return "nodes"
    return parts[1] if len(parts) > 1 else "trainer"


@dataclass(frozen=True, slots=True)
class Definition:
    """A class or function at a module's top level, or a member of such a class."""

    path: PurePosixPath
    name: str
    """Dotted, as in `Family.encode`."""
    node: ast.ClassDef | Function
    owner: ast.ClassDef | None
    """The class it is a member of."""

    def __str__(self) -> str:
        return f"{self.path}:{self.node.lineno} {self.name}"

    def is_public(self) -> bool:
        """Tell whether no part of the name, dunders included, starts with an underscore."""
        return not any(part.startswith("_") for part in self.name.split("."))


def definitions(modules: Modules) -> list[Definition]:
    """Every class and function of these modules except those nested in functions."""

    def members(
        path: PurePosixPath, body: list[ast.stmt], owner: ast.ClassDef | None, prefix: str
    ) -> Iterator[Definition]:
        for node in body:
            if isinstance(node, ast.ClassDef | Function):
                yield Definition(path, f"{prefix}{node.name}", node, owner)
            if isinstance(node, ast.ClassDef):
                yield from members(path, node.body, node, f"{prefix}{node.name}.")

    return [found for path, module in modules.items() for found in members(path, module.body, None, "")]


def attributes(node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt, str, int]]:
    """Name, assignment, docstring and the docstring's line of every attribute of a module or class. The docstring, a
    string right after the assignment, is empty where there is none."""
    for statement, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=False):
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        text = following.value.value if documented and isinstance(following.value.value, str) else ""
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, statement, text, following.lineno if text else statement.lineno


def docstrings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a module: its own, those of its classes and functions, nested and private
    ones too, and those of attributes."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from ((line, text) for _, _, text, line in attributes(node) if text)
