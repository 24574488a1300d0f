"""The documentation against the code: tables, links, requirements."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainer.cli.parser import build_parser
from trainer.config.request import MultiImageParams, TrainingParams
from trainer.config.settings import RunSettings

from .test_layers import LADDER

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_requirements_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[\n(.+?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in listed if not line.startswith("#")] == re.findall(r'"(.+)"', dependencies)


def test_optional_packages_are_tested_and_documented() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project.optional-dependencies\]\n(.+?)^\[", project, re.MULTILINE | re.DOTALL)[1]
    tested = (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pages = "".join(
        (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("settings.md", "model-files.md", "tracking.md")
    )
    for package in re.findall(r'"(.+?)"', section):
        assert package in tested
        assert f'pip install "{package}"' in pages


@pytest.mark.parametrize(
    ("page", "model"),
    [("request.md", TrainingParams), ("request.md", MultiImageParams), ("settings.md", RunSettings)],
)
def test_every_field_is_listed_with_its_default_and_description(page: str, model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, field in model.model_fields.items():
        ((row, meaning),) = re.findall(rf"^\| `{name}` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
        assert meaning.startswith(field.description)
        if field.is_required():
            assert row == "**required**"
        elif field.default not in ("", None) and field.default_factory is None:
            assert row.strip("`") == (field.default if isinstance(field.default, str) else json.dumps(field.default))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = [target for target in targets if "://" not in target and not (page.parent / target).is_file()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    """A bar in a cell has to be escaped, in code too."""
    head, wrong = None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        head = cells if cells is None or head is None else head
        if cells != head:
            wrong.append(line)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_what_the_command_line_takes(page: Path) -> None:
    blocks = re.findall(r"^ *```sh\n(.+?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = shlex.split(line)
        for place in [index for index, word in enumerate(words) if word == "trainer" and words[index - 1] == "-m"]:
            options, unknown = build_parser().parse_known_args(words[place + 1 :])
            assert unknown == [] and options.run


def test_the_architecture_shows_the_ladder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    floors: dict[int, set[str]] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (`.+?`) \|", text, re.MULTILINE):
        floors.setdefault(int(floor), set()).update(re.findall(r"`(\w+)`", rooms))
    assert floors == {floor: set(rooms) for floor, rooms in enumerate(LADDER, 1)}


def defines(source: str, name: str) -> bool:
    """Tell whether a module defines a function, class, method (`Class.method`) or module-level name."""
    return all(re.search(rf"^ *(def|class) {part}\b|^{part}\b.* = ", source, re.MULTILINE) for part in name.split("."))


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_and_names_in_the_text_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = []
    for path, name in re.findall(r"`([\w/]+\.(?:py|js|md))(?:: ([\w.]+))?`", text):
        file = next((place / path for place in (ROOT, ROOT / "trainer") if (place / path).is_file()), None)
        if file is None or (name and not defines(file.read_text(encoding="utf-8"), name)):
            missing.append(f"{path}: {name}")
    assert missing == []
