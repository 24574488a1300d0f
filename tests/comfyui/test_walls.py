"""The arrow points down: nodes know the trainer, the trainer does not know ComfyUI, and nodes do not train."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
}
TRAINING = {"backward", "optim", "zero_grad", "mse_loss", "add_adapter", "AdamW"}
LONGEST_EXECUTE = 40


def modules(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Module and level of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, 0) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def test_the_trainer_imports_nothing_of_comfyui() -> None:
    for path, tree in modules("trainer"):
        depth = len(path.relative_to(ROOT / "trainer").parts)
        for module, level in imported(tree):
            assert level or module.split(".")[0] not in COMFYUI_MODULES, path
            assert level <= depth, f"{path} reaches above trainer/"


def test_the_pack_imports_itself_by_relative_names_only() -> None:
    for folder in ("nodes", "trainer"):
        for path, tree in modules(folder):
            assert all(level or module.split(".")[0] not in ("trainer", "nodes") for module, level in imported(tree)), (
                path
            )


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
