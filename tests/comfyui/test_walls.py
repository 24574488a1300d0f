"""Nodes are thin: they do not train, and the root package loads without ComfyUI."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"backward", "optim", "zero_grad", "mse_loss", "add_adapter", "AdamW"}
LONGEST_EXECUTE = 40


def modules(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_importing_the_root_needs_no_comfyui() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_nodes_are_adapters() -> None:
    for path, tree in modules("nodes"):
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & TRAINING, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "execute":
                assert node.end_lineno - node.lineno < LONGEST_EXECUTE, path
