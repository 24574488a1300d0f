"""What ComfyUI's registry reads and publishes: https://docs.comfy.org/registry/specifications."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from trainer.cli.parser import VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "EditTrainerBaseModel": "diffusion_models",
    "VAELoader": "vae",
}
"""ComfyUI's model folders by loader."""
MAX_ZIP = 28 * 2**20
MAX_ICON = 400
"""Pixels of a side."""


def git_files(*options: str) -> set[str]:
    """Tracked files, as `git ls-files` with these options lists them."""
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0")) - {""}


def published() -> set[str]:
    """The files that `comfy node publish` packs: those that git tracks, without what `.comfyignore` lists."""
    return git_files() - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_the_metadata_follows_the_registrys_rules() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", project["name"])
    assert len(project["name"]) < 100
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (ROOT / project["license"]["file"]).is_file()
    assert project["description"]
    assert comfy.keys() == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    publisher = f"/{comfy['PublisherId']}/edit-trainer"
    assert all(publisher in url for url in (*project["urls"].values(), comfy["Icon"]))
    assert project["urls"]["Repository"] == f"https://github.com{publisher}"
    assert comfy["requires-comfyui"] == ">=0.8.0"


def test_the_icon_is_a_small_square() -> None:
    file = PROJECT["tool"]["comfy"]["Icon"].partition("/main/")[2]
    with Image.open(ROOT / file) as icon:
        assert icon.width == icon.height <= MAX_ICON
    assert file in git_files()


def test_every_version_is_the_packs() -> None:
    version = PROJECT["project"]["version"]
    page = (ROOT / "web" / "edit_trainer.js").read_text(encoding="utf-8")
    assert re.findall(r'VERSION = "(.*)"', page) == [version]
    assert version == VERSION
    said = subprocess.run([sys.executable, "-m", "trainer", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == f"edit-trainer {version}\n"


def test_requirements_are_the_projects() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == PROJECT["project"]["dependencies"]


@pytest.mark.slow
def test_the_published_pack_is_small_and_works(tmp_path: Path) -> None:
    files, archive = published(), tmp_path / "pack.zip"
    assert not [name for name in files if name.startswith(("tests/", ".ci/", ".github/"))]
    assert {"__init__.py", "nodes/train.py", "web/edit_trainer.js", "locales/zh/main.json"} <= files
    assert [name for name in files if name.startswith("subgraphs/")]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in sorted(files):
            pack.write(ROOT / name, name)
    assert archive.stat().st_size < MAX_ZIP
    with zipfile.ZipFile(archive) as pack:
        pack.extractall(tmp_path / "pack")
    command = [sys.executable, "-m", "trainer", "inspect", "example_workflows/edit_trainer_example.parquet"]
    done = subprocess.run(command, cwd=tmp_path / "pack", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_loaders_name_the_downloads_of_their_files(workflow: Path) -> None:
    """As ComfyUI's own templates do: the page then offers what is missing."""
    for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]:
        files = {value for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")}
        models = node["properties"].get("models", [])
        if node["type"] in FOLDERS:
            assert {model["name"] for model in models} == files
            assert {model["directory"] for model in models} == ({FOLDERS[node["type"]]} if files else set())
            assert files or node["widgets_values"][0].startswith("tiny/")
        for model in models:
            assert re.match(r"https://huggingface\.co/[^/]+/[^/]+/resolve/main/", model["url"])
            assert model["url"].endswith(f"/{model['name']}")
