"""Colours of the pack's links and texts in the dark and the light palette."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.graphs import training
from ..comfyui.run_snapshots import first_message
from ..comfyui.server import Server
from .contrast import check_contrast, choose_palette
from .helpers import choose_renderer, load, read_panel, screenshot, scroll_to, short_workflow, wait_until

RENDERERS = ["classic", "vue"]
PALETTES = ["light", "dark"]
LINK_COLORS = """() => {
  const types = ['DATASET', 'MODEL', 'PARAMS', 'SAMPLES', 'SETTINGS', 'RUN'].map((type) => `EDIT_${type}`)
  const root = getComputedStyle(document.documentElement)
  return [...new Set(types.flatMap((type) => [
    LGraphCanvas.link_type_colors[type],
    app.canvas.default_connection_color_byType[type],
    root.getPropertyValue(`--color-datatype-${type}`),
  ]))]
}"""
SHOW = """(message) => {
  const node = app.graph.nodes.find((node) => node.type === 'EditTrainerTrain')
  const event = { ...message, node_id: String(node.id) }
  window.comfyAPI.api.api.dispatchCustomEvent('edit_trainer.run', event)
}"""
STATES: dict[str, dict[str, Any]] = {
    "running": {"phase": "training", "seconds_left": 75, "warnings": ["A sample's control image is not there."]},
    "stopped": {"status": "40 steps done, saved as output/loras/colors-000040.safetensors"},
    "finished": {"status": "100 steps done, saved as output/loras/colors-000100.safetensors"},
    "failed": {"status": "Not enough memory on the device. Choose a smaller resolution."},
}
CHOOSE_COLUMNS = """(values) => {
  const dataset = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  for (const [name, value] of Object.entries(values)) {
    const widget = dataset.widgets.find((widget) => widget.name === name)
    widget.value = value
    widget.onChoice(value, true)
  }
}"""
COLUMNS = {
    "warning": ({"control_image_column": "target", "image_column": "control"}, "look swapped"),
    "error": ({"control_image_column": "control", "image_column": "targt"}, "no column “targt”"),
}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_links_have_one_color_in_every_palette(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    for palette in PALETTES:
        choose_palette(page, palette)
        colors = wait_until(lambda: len(found := page.evaluate(LINK_COLORS)) == 1 and found, 20)
        assert colors[0].startswith("#"), colors


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("renderer", RENDERERS)
def test_texts_in_nodes_are_readable(page: Page, server: Server, renderer: str, palette: str) -> None:
    assert server.run(training(run_name="colors", params={"steps": 4, "sample_every": 2})).status == "execution_success"
    saved = server.get("/edit_trainer/archive/colors")
    choose_renderer(page, renderer)
    choose_palette(page, palette)
    load(page, short_workflow("colors", 100, 50))
    wait_until(lambda: read_panel(page)["small"], 30)
    for zoom in (1.0, 0.5):
        scroll_to(page, "EditTrainerLoadDataset", zoom)
        for kind, (columns, words) in COLUMNS.items():
            page.evaluate(CHOOSE_COLUMNS, columns)
            expect(page.locator(".edit-trainer-notes li")).to_contain_text(words)
            page.wait_for_timeout(500)
            check_contrast(page, 10)
            screenshot(page, f"dataset {renderer} {palette} {zoom:.0%} {kind}", "body")
        scroll_to(page, "EditTrainerTrain", zoom)
        for state, values in STATES.items():
            step = 100 if state == "finished" else 40
            points = [[step, 1 / (1 + step / 20)] for step in range(1, step + 1)]
            message = first_message(
                id=f"{state} {zoom}",
                run="colors",
                state=state,
                step=step,
                steps=100,
                seconds=0.5,
                memory=[6 << 30, 8 << 30],
                plan="int8, blocks streamed",
                points=points,
                samples=saved["samples"],
                checkpoints=[20, 40],
                **values,
            )
            page.evaluate(SHOW, message)
            wait_until(lambda state=state: read_panel(page)["state"] == state, 20)
            page.wait_for_timeout(500)
            check_contrast(page, 20)
            screenshot(page, f"panel {renderer} {palette} {zoom:.0%} {state}", "body")


@pytest.mark.parametrize("palette", PALETTES)
def test_texts_in_the_runs_tab_and_dialogs_are_readable(page: Page, server: Server, palette: str) -> None:
    for name in ("colors", "colors-b"):
        steps = {"steps": 4, "sample_every": 2} if name == "colors" else {"steps": 6, "sample_every": 3}
        assert server.run(training(run_name=name, params=steps)).status == "execution_success"
    choose_renderer(page, "classic")
    choose_palette(page, palette)
    page.evaluate("() => app.graph.clear()")
    page.get_by_role("button", name="Training runs").first.click()
    rows = page.locator(".edit-trainer-run")
    expect(rows.first).to_be_visible()
    page.wait_for_timeout(500)
    check_contrast(page, 10)
    screenshot(page, f"runs tab {palette}", "body")
    rows.first.get_by_role("button", name="Delete").click()
    check_contrast(page, 10)
    screenshot(page, f"delete {palette}", "body")
    page.keyboard.press("Escape")
    rows.first.get_by_role("button", name="Open").click()
    page.locator(".edit-trainer-compare summary").click()
    page.wait_for_timeout(500)
    check_contrast(page, 40)
    screenshot(page, f"one run {palette}", "body")
    page.locator(".edit-trainer-picture").first.click()
    check_contrast(page, 40)
    screenshot(page, f"viewer {palette}", "body")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    for index in (0, 1):
        rows.nth(index).get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare two").click()
    page.wait_for_timeout(500)
    check_contrast(page, 20)
    screenshot(page, f"compare {palette}", "body")


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("renderer", RENDERERS)
def test_menus_are_readable(page: Page, server: Server, renderer: str, palette: str) -> None:
    choose_renderer(page, renderer)
    choose_palette(page, palette)
    load(page, short_workflow("menus", 4, 4))
    scroll_to(page, "EditTrainerLoadDataset")
    wait_until(lambda: page.get_by_text("128 rows").is_visible(), 30)
    page.locator(".edit-trainer-choice input").nth(2).focus()
    page.keyboard.press("ArrowDown")
    page.locator(".edit-trainer-menu:popover-open").wait_for()
    check_contrast(page, 10)
    screenshot(page, f"menu {renderer} {palette}", "body")
