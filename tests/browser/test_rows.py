"""Looking through the rows of a dataset in the real page: leaving rows out, editing captions, what looks wrong."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from trainer.data.row_edits import RowEdits, edits_file, read_edits

from ..comfyui.server import PACK, Server
from .contrast import check_contrast, choose_palette
from .helpers import PageLog, choose_renderer, load, screenshot, scroll_to, short_workflow, wait_until

RENDERERS = ["classic", "vue"]
MANY_ROWS = 100_000
CHOOSE = """(resource) => {
  const dataset = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  const widget = dataset.widgets.find((widget) => widget.name === 'resource')
  widget.value = resource
  widget.onChoice(resource, true)
}"""
PICTURES = """() => [...document.querySelectorAll('.edit-trainer-browse-row figure > img:first-child')]
  .filter((image) => image.naturalWidth > 0).length"""


@pytest.fixture
def parquet(server: Server) -> Iterator[Path]:
    """The example in the input folder, whose row 3 has its control as its target."""
    path = server.base / "input" / "rows.parquet"
    table = pq.read_table(PACK / "example_workflows" / "edit_trainer_example.parquet")
    targets = table["target"].to_pylist()
    targets[3] = table["control"][3].as_py()
    field = table.schema.field("target")
    index = table.schema.get_field_index("target")
    pq.write_table(table.set_column(index, field, pa.array(targets, field.type)), path)
    yield path
    edits_file(path).unlink(missing_ok=True)


def open_rows(page: Page, resource: str, rows: str) -> Locator:
    """Choose a parquet in the dataset node and open its rows."""
    page.set_default_timeout(20_000)
    load(page, short_workflow("rows", 4, 4))
    scroll_to(page, "EditTrainerLoadDataset")
    page.evaluate(CHOOSE, resource)
    expect(page.get_by_text(f"{rows} rows, ").first).to_be_visible()
    page.get_by_role("button", name="Look through rows").click()
    dialog = page.locator("dialog.edit-trainer-browse")
    expect(dialog).to_be_visible()
    return dialog


def row(dialog: Locator, number: str) -> Locator:
    """The row of the list with a number."""
    return dialog.locator(".edit-trainer-browse-row").filter(has=dialog.page.get_by_text(number, exact=True))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_rows_are_left_out_and_captions_edited(page: Page, server: Server, parquet: Path, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    dialog = open_rows(page, "rows.parquet", "128")
    wait_until(lambda: page.evaluate(PICTURES) >= 8, 30)
    row(dialog, "2").get_by_role("checkbox").uncheck()
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 1 left out")
    text = row(dialog, "0").get_by_role("textbox")
    before = text.input_value()
    text.fill("<b>blue</b> frame")
    text.press("Control+Enter")
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 1 left out · 1 caption edited")
    assert read_edits(parquet) == RowEdits((2,), {"caption": {0: "<b>blue</b> frame"}})
    screenshot(page, f"rows {renderer}", "dialog")

    row(dialog, "1").locator("figure").nth(1).hover()
    over = row(dialog, "1").locator(".edit-trainer-over")
    expect(over).to_be_visible()
    wait_until(lambda: over.evaluate("(image) => image.naturalWidth"), 20)
    screenshot(page, f"rows {renderer} difference", "dialog")

    page.keyboard.press("Control+z")
    expect(text).to_have_value(before)
    row(dialog, "6").get_by_role("checkbox").click(modifiers=["Shift"])
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 5 left out")
    assert read_edits(parquet).left_out == (2, 3, 4, 5, 6)
    page.keyboard.press("Control+z")
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 1 left out")

    dialog.get_by_placeholder("Go to row").fill("127")
    page.keyboard.press("Enter")
    expect(row(dialog, "127")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator(".edit-trainer-info").get_by_text("1 left out")).to_be_visible()
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_rows_that_look_wrong_come_first(page: Page, server: Server, parquet: Path, renderer: str) -> None:
    choose_renderer(page, renderer)
    dialog = open_rows(page, "rows.parquet", "128")
    dialog.get_by_label("Order of the rows").select_option("worstFirst")
    leave = dialog.get_by_role("button", name="Leave out 1 identical")
    expect(leave).to_be_visible()
    first = dialog.locator(".edit-trainer-browse-row").first
    expect(first.locator(".edit-trainer-use")).to_have_text("3")
    expect(first).to_contain_text("the same picture")
    leave.click()
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 1 left out")
    expect(leave).to_be_hidden()
    assert read_edits(parquet).left_out == (3,)
    dialog.get_by_label("Order of the rows").select_option("leftOutFirst")
    expect(dialog.locator(".edit-trainer-browse-row").first.get_by_role("checkbox")).not_to_be_checked()


def test_edits_of_a_parquet_that_was_written_again(page: Page, server: Server, parquet: Path) -> None:
    choose_renderer(page, "classic")
    dialog = open_rows(page, "rows.parquet", "128")
    row(dialog, "2").get_by_role("checkbox").uncheck()
    expect(dialog.get_by_role("status")).to_have_text("128 rows · 1 left out")
    dialog.get_by_role("button", name="Close").click()
    pq.write_table(pq.read_table(parquet).slice(1), parquet)
    dialog = open_rows(page, "rows.parquet", "127")
    expect(dialog).to_contain_text("was written again")
    expect(row(dialog, "1").get_by_role("checkbox")).to_be_disabled()
    dialog.get_by_role("button", name="Discard these edits").click()
    expect(row(dialog, "1").get_by_role("checkbox")).to_be_enabled()
    assert not edits_file(parquet).exists()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_picture_that_cannot_be_shown_says_why(page: Page, server: Server, parquet: Path, renderer: str) -> None:
    table = pq.read_table(parquet).slice(0, 2)
    table = table.set_column(0, "control", pa.array(["http://127.0.0.1:1/a.png", "gone/b.png"]))
    pq.write_table(table.select(["control", "target", "caption"]), parquet)
    choose_renderer(page, renderer)
    dialog = open_rows(page, "rows.parquet", "2")
    for number, reason in (("0", "is in a private network"), ("1", "no such file")):
        picture = row(dialog, number).locator("figure").first
        expect(picture).to_have_attribute("data-label", re.compile(reason))
        assert reason in (picture.get_attribute("title") or "")
    screenshot(page, f"rows {renderer} not shown", "dialog")


def write_many(folder: Path) -> None:
    """A parquet of MANY_ROWS rows, with small pictures inside, in row groups of a thousand."""
    pictures = []
    for number in range(500):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), (number % 256, number // 2, 77)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    columns = {
        "caption": [f"edit number {number}" for number in range(MANY_ROWS)],
        "control": [pictures[number % 500] for number in range(MANY_ROWS)],
        "target": [pictures[(number * 7 + 1) % 500] for number in range(MANY_ROWS)],
    }
    pq.write_table(pa.table(columns), folder / "many.parquet", row_group_size=1000, use_dictionary=False)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_many_rows_are_drawn_where_they_are_seen(page: Page, server: Server, renderer: str) -> None:
    if not (server.base / "input" / "many.parquet").exists():
        write_many(server.base / "input")
    choose_renderer(page, renderer)
    before = server.memory()
    start = time.monotonic()
    dialog = open_rows(page, "many.parquet", "100,000")
    expect(row(dialog, "0")).to_be_visible()
    seconds = {"open": time.monotonic() - start}
    for number in (99_999, 50_000, 123, 77_777):
        start = time.monotonic()
        dialog.get_by_placeholder("Go to row").fill(str(number))
        page.keyboard.press("Enter")
        shown = row(dialog, f"{number:,}")
        expect(shown.get_by_role("textbox")).to_have_value(f"edit number {number}")
        wait_until(lambda shown=shown: shown.locator("img").first.evaluate("(image) => image.naturalWidth"), 20)
        seconds[str(number)] = time.monotonic() - start
    frames = page.evaluate(
        """async () => {
          const list = document.querySelector('.edit-trainer-browse-list')
          const times = []
          for (let frame = 0; frame < 120; frame++) {
            const start = performance.now()
            list.scrollTop += 400
            await new Promise(requestAnimationFrame)
            times.push(performance.now() - start)
          }
          return times.sort((a, b) => a - b)
        }"""
    )
    assert dialog.locator(".edit-trainer-browse-row").count() < 30
    grown = (server.memory() - before) / 2**20
    print(f"seconds {seconds}, frame median {frames[60]:.0f} ms, 95 % {frames[114]:.0f} ms, server +{grown:.0f} MB")
    assert max(seconds.values()) < 10
    assert frames[60] < 100
    assert grown < 300


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_rows_are_readable(page: Page, server: Server, parquet: Path, palette: str) -> None:
    choose_renderer(page, "classic")
    choose_palette(page, palette)
    dialog = open_rows(page, "rows.parquet", "128")
    row(dialog, "2").get_by_role("checkbox").uncheck()
    row(dialog, "1").get_by_role("textbox").fill("edited")
    row(dialog, "1").get_by_role("textbox").press("Control+Enter")
    expect(dialog.get_by_role("button", name="Leave out 1 identical")).to_be_visible()
    page.wait_for_timeout(500)
    check_contrast(page, 10)
    screenshot(page, f"rows {palette}", "body")
