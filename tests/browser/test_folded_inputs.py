"""Inputs that few people touch: newer pages fold them, and what a workflow has set in them stays."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.server import Server
from .helpers import PageLog, choose_renderer, load, screenshot, scroll_to, short_workflow, wait_until
from .test_notes import CHOOSE, COLUMNS, write_datasets

VALUES = """() => Object.fromEntries(app.graph.nodes.map((node) => [
  node.type,
  (node.widgets ?? []).filter(({ serialize }) => serialize !== false).map(({ name, value }) => [name, value]),
]))"""
"""Names and values of the widgets that a workflow saves, by the node's type."""
BUTTON = "advanced-inputs-button"
ROOT = """() => {
  const node = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  const widget = node.widgets.find((widget) => widget.name === 'images_root')
  const drawn = LiteGraph.vueNodesMode
    ? Boolean(document.querySelector(`[data-node-id="${node.id}"] [aria-label="images_root"]`))
    : node.isWidgetVisible(widget)
  return [widget.value, drawn]
}"""
"""Value of the dataset node's images_root, and whether it is drawn."""
OUT_OF_LINE = """() => {
  const choice = document.querySelector('.col-span-2.grid-cols-subgrid > div > .edit-trainer-choice')
  const node = choice?.closest('[data-node-id]')
  const fields = node?.querySelectorAll('.edit-trainer-choice input, [aria-label="images_root"]') ?? []
  const edges = [...fields].map((field) => field.getBoundingClientRect().left)
  return edges.length ? Math.max(...edges) - Math.min(...edges) : 0
}"""
"""Largest distance in pixels between left edges of a dataset node's fields, where its rows have the same columns."""

REMOVE_OTHERS = """() => {
  for (const node of [...app.graph.nodes]) if (node.type !== 'EditTrainerLoadDataset') app.graph.remove(node)
}"""
"""Leaves the dataset node alone, as it grows over those below it."""


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_folded_inputs_keep_their_values(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    workflow = short_workflow("folded", 4, 4)
    saved = next(node for node in workflow["nodes"] if node["type"] == "EditTrainerParams")["widgets_values"]
    load(page, workflow)
    assert [value for _, value in page.evaluate(VALUES)["EditTrainerParams"]] == saved
    node = page.locator("[data-node-id]").filter(has_text="batch_size").filter(has_text="lora_rank")
    options = server.get("/object_info/EditTrainerParams")["EditTrainerParams"]["input"]["required"]["sample_width"][1]
    if renderer == "vue" and options.get("advanced"):
        scroll_to(page, "EditTrainerParams")
        wait_until(lambda: node.get_by_test_id(BUTTON).is_visible(), 30)
        assert "sample_width" not in node.inner_text()
        node.get_by_test_id(BUTTON).click()
        wait_until(lambda: "sample_width" in node.inner_text(), 30)
    assert [value for _, value in page.evaluate(VALUES)["EditTrainerParams"]] == saved
    page.evaluate("() => app.loadGraphData(app.graph.serialize()).then(() => null)")
    assert [value for _, value in page.evaluate(VALUES)["EditTrainerParams"]] == saved
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_note_leads_to_the_folded_input_that_it_is_about(page: Page, server: Server, renderer: str) -> None:
    write_datasets(server.base)
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow("led", 4, 4))
    page.evaluate(REMOVE_OTHERS)
    scroll_to(page, "EditTrainerLoadDataset")
    page.evaluate(CHOOSE, ["", *COLUMNS, "paths.parquet"])
    line = page.locator(".edit-trainer-notes li")
    expect(line).to_contain_text("or set images_root to the folder")
    show = line.get_by_role("button", name="Show images_root")
    options = server.get("/object_info/EditTrainerLoadDataset")["EditTrainerLoadDataset"]["input"]["required"]
    page.wait_for_timeout(500)
    if page.evaluate(ROOT)[1]:
        assert renderer == "classic" or not options["images_root"][1].get("advanced"), "Vue nodes fold it"
        expect(show).to_have_count(0)
        return
    screenshot(page, f"folded {renderer}", "body")
    field = page.get_by_label("images_root", exact=True)
    for _ in range(2):
        show.click()
        wait_until(lambda: page.evaluate(ROOT) == ["", True], 20)
        if renderer == "vue":
            expect(field).to_be_focused()
        page.evaluate("() => document.activeElement.blur()")
        page.wait_for_timeout(500)
        page.keyboard.press("Control+z")
        wait_until(lambda: page.evaluate(ROOT) == ["", False], 20)
    show.click()
    wait_until(lambda: page.evaluate(ROOT) == ["", True], 20)
    screenshot(page, f"unfolded {renderer}", "body")
    if renderer == "vue":
        assert page.evaluate(OUT_OF_LINE) <= 1
        expect(field).to_be_focused()
        page.keyboard.type("nowhere")
        expect(line).to_contain_text("images_root: “nowhere” is not a folder here")
        show.click()
        expect(field).to_be_focused()
        assert page.evaluate(ROOT) == ["nowhere", True], "still unfolded"
    assert not log.problems
