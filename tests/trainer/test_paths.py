"""Names that no system can look for, at every place where a person or a request gives a path."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from trainer import paths
from trainer.cli.runner import check_folder
from trainer.data.dataset_files import find_images_root
from trainer.data.downloads import Downloads
from trainer.data.image_refs import fetch_control
from trainer.data.load_request import load_request, resolve_resource
from trainer.data.parquet import open_parquet
from trainer.errors import BadInput
from trainer.models.edit_model import open_model
from trainer.paths import find_files, path_kind, typed_file, typed_path
from trainer.single_file.header import open_weights
from trainer.single_file.tokenizer import find_tokenizers
from trainer.training.choose_folder import open_run_folder

DOORS: dict[str, Callable[[str], object]] = {
    "request": lambda name: load_request(Path(name)),
    "resource": resolve_resource,
    "images_root": lambda name: find_images_root(name, Path("edits.parquet")),
    "control image": lambda name: fetch_control(name, Downloads()),
    "parquet": lambda name: open_parquet(Path(name)),
    "model": lambda name: open_model("tiny/flux-kontext", Path(name)),
    "weights": lambda name: open_weights(Path(name), "transformer"),
    "ComfyUI": lambda name: find_tokenizers({}, "tiny/flux-kontext", Path(name), None),
    "run folder": lambda name: open_run_folder(Path(name), "fingerprint", 1, ExitStack()),
    "LoRA": lambda name: typed_file(name, "sample_lora"),
    "--out": lambda name: check_folder(Path(name)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["n" * 300, "folder/" * 800 + "file"], ids=["name", "path"])
def test_a_name_that_is_too_long(door: str, name: str) -> None:
    with pytest.raises(BadInput, match="File name too long"):
        DOORS[door](name)


@pytest.mark.parametrize("door", ["resource", "images_root", "control image", "LoRA"])
def test_a_home_that_does_not_exist(door: str) -> None:
    with pytest.raises(BadInput, match=r"~nobody-has-this-name/a.*home"):
        DOORS[door]("~nobody-has-this-name/a")


def test_kinds_follow_links(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    names = {
        "file": "file",
        "link": "file",
        ".": "folder",
        "none": "missing",
        "file/below": "missing",
        "a\0b": "missing",
    }
    assert {name: path_kind(tmp_path / name) for name in names} == names
    assert typed_path("~") == Path.home()


def test_a_search_finds_the_nearest_files_first_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for name in ("one.parquet", "deep/two.parquet", "deep/deeper/three.parquet", "deep/four.txt"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, ".parquet")]
    assert found == ["one.parquet", "deep/two.parquet", "deep/deeper/three.parquet"]
    monkeypatch.setattr(paths, "MAX_ENTRIES", 5)
    assert len(list(find_files(tmp_path, ".parquet"))) == 2
    monkeypatch.setattr(paths, "MAX_ENTRIES", 1)
    assert len(list(find_files(tmp_path, ".parquet"))) <= 1


def test_a_search_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    assert list(find_files(tmp_path / "none", ".parquet")) == []
