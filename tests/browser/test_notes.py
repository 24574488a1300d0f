"""What is wrong with a dataset stands in its node, in both renderers and in Chinese."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ..comfyui.server import Server
from .helpers import PageLog, choose_renderer, screenshot, scroll_to, wait_until
from .test_dataset_menus import make_request

RENDERERS = ["classic", "vue"]
COLUMNS = ("caption", "control", "target")
BUILD = """() => {
  app.graph.clear()
  const dataset = LiteGraph.createNode('EditTrainerLoadDataset')
  dataset.pos = [100, 100]
  app.graph.add(dataset)
  const preview = LiteGraph.createNode('PreviewImage')
  preview.pos = [900, 100]
  app.graph.add(preview)
  dataset.connect(1, preview, 0)
}"""
CHOOSE = """(values) => {
  const dataset = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  const names = ['images_root', 'caption_column', 'control_image_column', 'image_column', 'resource']
  const widgets = names.map((name) => dataset.widgets.find((widget) => widget.name === name))
  widgets.forEach((widget, index) => { widget.value = values[index] })
  widgets[4].onChoice(values[4], true)
}"""
ADD_REQUEST = """() => {
  const node = LiteGraph.createNode('EditTrainerLoadRequest')
  node.pos = [100, 100]
  app.graph.add(node)
}"""
NOTES = """() => [...document.querySelectorAll('.edit-trainer-notes li')].map((line) => {
  const [own, around] = [line.getBoundingClientRect(), line.closest('section').getBoundingClientRect()]
  const whole = own.height > 0 && own.top >= around.top && own.bottom <= around.bottom + 1
  return [line.dataset.level, line.innerText, whole]
})"""


def picture(color: str) -> bytes:
    """Encode a small image of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_datasets(folder: Path) -> None:
    """Write one parquet for each kind of fault into ComfyUI's input folder, and one beside it."""
    red, blue = [picture("red")] * 4, [picture("blue")] * 4
    tables: dict[str, dict[str, Any]] = {
        "input/good.parquet": {"caption": ["paint it"] * 4, "control": red, "target": blue},
        "input/swapped.parquet": {"caption": ["paint it"] * 4, "output_image": red, "input_image": blue},
        "input/same.parquet": {"caption": ["paint it"] * 4, "control": red, "target": red},
        "input/bad.parquet": {"caption": ["paint it", None, "x", "y"], "control": red, "target": [*blue[:3], b""]},
        "input/paths.parquet": {
            "caption": ["a", "b"],
            "control": ["in/1.png", "in/2.png"],
            "target": ["3.png", "4.png"],
        },
        "elsewhere.parquet": {"caption": ["paint it"] * 4, "control": red, "target": blue},
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), folder / name)


KINDS: dict[str, tuple[tuple[str, ...], bool, str, str, str]] = {
    "missing": (("none.parquet", *COLUMNS, ""), False, "error", "s input folder. Choose a file", "没有“none.parquet”"),
    "column": (
        ("good.parquet", "caption", "contrl", "target", ""),
        False,
        "error",
        "no column “contrl”. Its columns are caption, control, target",
        "没有名为“contrl”的列",
    ),
    "swapped": (
        ("swapped.parquet", "caption", "output_image", "input_image", ""),
        True,
        "warning",
        "look swapped: “output_image”",
        "似乎颠倒了",
    ),
    "same": (
        ("same.parquet", *COLUMNS, ""),
        True,
        "warning",
        "same image in 4 of 4 rows",
        "4 行中有 4 行的控制图与目标图相同",
    ),
    "bad": (("bad.parquet", *COLUMNS, ""), True, "error", "2 of 4 rows cannot be used", "4 行中有 2 行无法使用"),
    "paths": (("paths.parquet", *COLUMNS, ""), False, "error", "there is no in/1.png below", "下没有 in/1.png"),
    "outside": (
        ("{base}/elsewhere.parquet", *COLUMNS, ""),
        False,
        "warning",
        "s input folder: training can use it",
        "不在 ComfyUI 的 input 文件夹内",
    ),
    "images outside": (
        ("paths.parquet", *COLUMNS, "{base}"),
        False,
        "warning",
        "images_root “",
        "图像根目录“",
    ),
}
"""Values of the node, whether the graph is run, and the note: its level and words in English and Chinese."""


def show_language(page: Page, language: str) -> None:
    """Choose the page's language and load the page again."""
    page.evaluate("(language) => app.extensionManager.setting.set('Comfy.Locale', language)", language)
    page.reload()
    page.wait_for_function("window.app?.graph && window.app.canvas && window.LiteGraph")
    page.wait_for_function("Object.keys(LiteGraph.registered_node_types).includes('EditTrainerTrain')")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_fault_of_a_dataset_is_readable_in_its_node(
    page: Page, server: Server, renderer: str, language: str
) -> None:
    write_datasets(server.base)
    show_language(page, language)
    choose_renderer(page, renderer)
    log = PageLog(page)
    page.evaluate(BUILD)
    scroll_to(page, "EditTrainerLoadDataset")
    try:
        for kind, (values, runs, level, *words) in KINDS.items():
            resource, *columns, root = (value.format(base=server.base) for value in values)
            page.evaluate(CHOOSE, [root, *columns, resource])
            if runs:
                page.wait_for_timeout(600)
                page.evaluate("() => app.queuePrompt(0, 1)")
            wanted = words[("en", "zh").index(language)]
            found: list[list[Any]] = []
            try:
                wait_until(lambda: any(wanted in text and whole for _, text, whole in page.evaluate(NOTES)), 20)  # noqa: B023
            finally:
                found = page.evaluate(NOTES)
                page.wait_for_timeout(300)
                screenshot(page, f"notes {renderer} {language} {kind}", ".edit-trainer-info")
                assert found, kind
            note = next(note for note in page.evaluate(NOTES) if wanted in note[1])
            assert (note[0], note[2]) == (level, True), (kind, note)
            assert len(page.evaluate(NOTES)) == 1, kind
            wait_until(lambda: not server.get("/queue")["queue_running"], 60)
            page.keyboard.press("Escape")
        assert not [problem for problem in log.problems if "edit_trainer" in problem], log.problems
    finally:
        show_language(page, "en")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_faults_of_a_request_stand_in_its_node(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    page.evaluate("() => app.graph.clear()")
    request = make_request()
    page.evaluate(ADD_REQUEST)
    scroll_to(page, "EditTrainerLoadRequest")
    lines = page.locator(".edit-trainer-notes li")

    def edit(**params: Any) -> None:
        request["training_params"] |= params
        page.locator("textarea:visible").first.fill(json.dumps(request))

    expect(lines).to_have_count(0)
    edit(steps=-1)
    expect(lines).to_contain_text("steps")
    edit(steps=2, image_column="targt")
    expect(lines).to_contain_text("no column “targt”. Its columns are control, caption, target")
    screenshot(page, f"request notes {renderer}", "body")
    edit(image_column="target")
    expect(lines).to_have_count(0)
    page.locator("textarea:visible").first.fill('{"resource": ')
    expect(lines).to_contain_text("not valid JSON")
    assert not log.problems
