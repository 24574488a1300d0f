"""What the page shows of each node in words: names, tooltips and help pages, in English and Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NODES = json.loads((ROOT / "tests" / "comfyui" / "object_info.json").read_text(encoding="utf-8"))
"""The public interface, which tests/comfyui compares with a running server."""
HELP = {"en": "{node}.md", "zh": "{node}/zh.md"}
"""File in web/docs where the page looks for a node's help, by language."""


def texts(language: str, name: str) -> Any:
    """A file of texts of a language."""
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def keys(value: Any, prefix: str = "") -> set[str]:
    """Paths to all texts in a tree of them."""
    if not isinstance(value, dict):
        return {prefix}
    return {path for key, part in value.items() for path in keys(part, f"{prefix}/{key}")}


@pytest.mark.parametrize("language", HELP)
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_names_every_input_and_output(node: str, language: str) -> None:
    page = (ROOT / "web" / "docs" / HELP[language].format(node=node)).read_text(encoding="utf-8")
    shown = texts(language, "nodeDefs")[node]
    assert page.startswith(f"# {shown['display_name']}\n")
    rows = re.findall(r"^\|(?: (.+?))?? `(\w+)`.*? \| .+ \|$", page, re.MULTILINE)
    inputs = {name for group in NODES[node]["inputs"].values() for name in group}
    outputs = [name for name, _ in NODES[node]["outputs"]]
    assert sorted(name for _, name in rows) == sorted([*inputs, *outputs])
    if language != "en":
        labels = [part["name"] for group in ("inputs", "outputs") for part in shown[group].values()]
        assert [label for label, _ in rows] == labels


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "locales" / "en").glob("*.json")))
def test_every_text_is_there_in_chinese(name: str) -> None:
    assert keys(texts("zh", name)) == keys(texts("en", name))
