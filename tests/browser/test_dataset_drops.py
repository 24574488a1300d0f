"""Pictures that are dropped on a dataset node in the real page: packed, and chosen in the node."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from ..comfyui.server import Server
from ..trainer.edits import number_of, png
from .helpers import PageLog, choose_renderer, load, screenshot, scroll_to, short_workflow, wait_until
from .test_dataset_menus import DROP, VALUES

RENDERERS = ["classic", "vue"]


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def write_pairs(folder: Path, count: int, captions: bool = True) -> None:
    """Folders of controls and targets, and a file that macOS adds."""
    for name, first in (("control", 0), ("target", 1000)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"bild ü {number}.png").write_bytes(png(first + number))
            if captions and name == "target":
                (folder / name / f"bild ü {number}.txt").write_text(f"edit {number}", encoding="utf-8")
    (folder / ".DS_Store").write_bytes(b"\0")


def drop(page: Page, *paths: Path, below: int) -> None:
    """Drop files and folders of the disk on the dataset node, as the browser takes them from the desktop, that many
    pixels below the top of the pack's own element."""
    box = page.locator(".edit-trainer-info").bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    place = {"x": box["x"] + 40, "y": box["y"] + below}
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
        page.wait_for_timeout(100)


def numbers(parquet: Path) -> list[tuple[int, int, str]]:
    rows = pq.read_table(parquet).to_pylist()
    return [(number_of(row["control"]), number_of(row["target"]), row["caption"]) for row in rows]


def open_node(page: Page, renderer: str) -> None:
    choose_renderer(page, renderer)
    load(page, short_workflow("drops", 4, 4))
    scroll_to(page, "EditTrainerLoadDataset")
    wait_until(lambda: page.get_by_text("128 rows, ").first.is_visible(), 30)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_dropped_zip_is_packed_chosen_and_undone(page: Page, server: Server, renderer: str) -> None:
    open_node(page, renderer)
    log = PageLog(page)
    before = page.evaluate(VALUES)
    files = {f"{n}_start.png": png(n) for n in range(3)} | {f"{n}_end.png": png(n + 1000) for n in range(3)}
    data = zipped(files | {f"{n}.txt": f"edit {n} {renderer}".encode() for n in range(3)})
    assert page.evaluate(DROP, [f"pairs {renderer}.zip", list(data)])
    wait_until(lambda: page.evaluate(VALUES)["resource"] == f"pairs {renderer}.parquet", 60)
    values = page.evaluate(VALUES)
    columns = ("caption_column", "control_image_column", "image_column")
    assert [values[name] for name in columns] == ["caption", "control", "target"]
    expected = [(n, n + 1000, f"edit {n} {renderer}") for n in range(3)]
    assert numbers(server.base / "input" / f"pairs {renderer}.parquet") == expected
    wait_until(lambda: page.locator(".edit-trainer-first img[src]").count() == 6, 30)
    screenshot(page, f"dropped zip {renderer}", "body")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Control+z")
    wait_until(lambda: page.evaluate(VALUES) == before, 20)
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_folders_of_pictures_from_the_desktop(page: Page, server: Server, tmp_path: Path, renderer: str) -> None:
    open_node(page, renderer)
    write_pairs(tmp_path / f"set {renderer}", 3)
    drop(page, tmp_path / f"set {renderer}", below=-30)
    wait_until(lambda: page.evaluate(VALUES)["resource"] == f"set {renderer}.parquet", 60)
    assert numbers(server.base / "input" / f"set {renderer}.parquet") == [(n, n + 1000, f"edit {n}") for n in range(3)]

    write_pairs(tmp_path / "plain", 2, captions=False)
    drop(page, tmp_path / "plain" / "control", tmp_path / "plain" / "target", below=60)
    field = page.locator("dialog.edit-trainer-ask input")
    field.fill(f"for all {renderer}")
    page.keyboard.press("Enter")
    wait_until(lambda: page.evaluate(VALUES)["resource"].startswith("pictures"), 60)
    packed = server.base / "input" / page.evaluate(VALUES)["resource"]
    assert numbers(packed) == [(n, n + 1000, f"for all {renderer}") for n in range(2)]


def test_pictures_without_partners_are_named(page: Page, server: Server) -> None:
    open_node(page, "classic")
    before = page.evaluate(VALUES)
    assert page.evaluate(DROP, ["lonely.zip", list(zipped({"target/lonely.png": png(1), "control/other.png": png(2)}))])
    expect(page.locator(".edit-trainer-info p.edit-trainer-bad")).to_contain_text("target/lonely.png")
    assert page.evaluate(VALUES) == before
    assert not (server.base / "input" / "lonely.parquet").exists()
