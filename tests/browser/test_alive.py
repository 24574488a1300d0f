"""Nodes that come to life by other ways than opening a workflow, and panels whose run is renamed meanwhile."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.graphs import training
from ..comfyui.server import Server
from .helpers import PANEL, PageLog, choose_renderer, load, read_panel, scroll_to, short_workflow, wait_until
from .test_subgraph import ENTER

RENDERERS = ["classic", "vue"]
TRAIN = "6"
"""Id of the Train node of `short_workflow`."""
CHOSEN = "['EditTrainerBaseModel', 'EditTrainerLoadDataset'].includes(node.type)"
PASTE = f"""() => {{
  const nodes = app.graph.nodes.filter((node) => {CHOSEN})
  app.canvas.copyToClipboard(nodes)
  const before = new Set(app.graph.nodes)
  app.canvas.pasteFromClipboard()
  return app.graph.nodes.filter((node) => !before.has(node)).map((node) => [node.type, String(node.id)])
}}"""
ENCLOSE = f"""() => {{
  const inside = app.graph.nodes.filter((node) => {CHOSEN})
  return String(app.graph.convertToSubgraph(new Set(inside)).node.id)
}}"""
TEXTS = """() => Object.fromEntries(app.canvas.graph.nodes.map((node) => [
  String(node.id), (node.widgets ?? []).map((widget) => widget.element?.textContent ?? '').join(' '),
]))"""
"""What the pack's elements on each node of the graph on display say, by the node's id."""
FOCUS = """([id, name]) => {
  const node = app.canvas.graph.nodes.find((node) => String(node.id) === id)
  app.canvas.centerOnNode(node)
  node.widgets.find((widget) => widget.name === name).element.querySelector('input').focus({ preventScroll: true })
}"""

CHANGE = """() => {
  const { changeTracker } = app.extensionManager.workflow.activeWorkflow
  changeTracker.beforeChange()
  app.graph.nodes.find((node) => node.type === 'EditTrainerParams').title = 'changed'
  changeTracker.afterChange()
}"""
"""Changes a title as one step of the page's undo history."""
CAPTION_COLUMN = """() => app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset').widgets
  .find((widget) => widget.name === 'caption_column').value"""


def wait_for_nodes(page: Page, nodes: dict[str, str]) -> None:
    """Wait until a pasted or enclosed base model and dataset show what they name."""
    base_model, dataset = nodes["EditTrainerBaseModel"], nodes["EditTrainerLoadDataset"]
    wait_until(lambda: "part of the pack" in page.evaluate(TEXTS)[base_model], 30)
    wait_until(lambda: "128 rows" in page.evaluate(TEXTS)[dataset], 30)
    assert page.evaluate(TEXTS)[dataset].count("Choose file") == 1
    page.evaluate(FOCUS, [dataset, "caption_column"])
    page.keyboard.press("ArrowDown")
    offered = page.locator(".edit-trainer-menu:popover-open .edit-trainer-option > span")
    expect(offered).to_have_text(["caption", "control", "target"])


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pasted_nodes_show_what_they_name(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow("pasted", 4, 4))
    wait_for_nodes(page, dict(page.evaluate(PASTE)))
    assert not log.problems


@pytest.mark.parametrize("reopened", [False, True], ids=["made", "reopened"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_nodes_in_a_subgraph_show_what_they_name(page: Page, server: Server, renderer: str, reopened: bool) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow("enclosed", 4, 4))
    subgraph = page.evaluate(ENCLOSE)
    if reopened:
        page.evaluate("() => app.loadGraphData(app.graph.serialize()).then(() => null)")
    page.evaluate(ENTER, subgraph)
    page.wait_for_timeout(1000)
    types = "() => app.canvas.graph.nodes.map((node) => [node.type, String(node.id)])"
    wait_for_nodes(page, dict(page.evaluate(types)))
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_that_is_renamed_while_it_trains_is_still_followed(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow(f"first-name-{renderer}", 5000, 5000))
    page.evaluate("() => app.queuePrompt(0, 1)")
    wait_until(lambda: read_panel(page)["step"] >= 2)
    rename = """(name) => {
      const train = app.graph.nodes.find((node) => node.type === 'EditTrainerTrain')
      train.widgets.find((widget) => widget.name === 'run_name').value = name
    }"""
    page.evaluate(rename, f"second-name-{renderer}")
    step = read_panel(page)["step"]
    wait_until(lambda: read_panel(page)["step"] > step)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.evaluate(rename, f"third-name-{renderer}")
    scroll_to(page, "EditTrainerTrain")
    page.get_by_role("button", name="Stop and save").click()
    shown = """() => document.querySelector('.edit-trainer-panel .edit-trainer-name')?.textContent"""
    wait_until(lambda: page.evaluate(shown) == f"second-name-{renderer}" and read_panel(page)["step"] >= 2)
    assert read_panel(page)["state"] == "running"
    page.get_by_role("button", name="Stop and save").click()
    wait_until(lambda: read_panel(page)["state"] == "stopped")
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_undo_while_a_run_trains_leaves_the_nodes_alive(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow(f"undone-{renderer}", 5000, 5000))
    page.evaluate("() => app.queuePrompt(0, 1)")
    wait_until(lambda: read_panel(page)["step"] >= 2)
    page.evaluate(CHANGE)
    page.keyboard.press("Control+z")
    wait_until(lambda: "changed" not in page.evaluate("() => app.graph.nodes.map((node) => node.title)"), 20)
    scroll_to(page, "EditTrainerTrain")
    page.wait_for_timeout(1000)
    step = read_panel(page)["step"]
    wait_until(lambda: read_panel(page)["step"] > max(step, 2), 30)
    page.get_by_role("button", name="Stop and save").click()
    wait_until(lambda: read_panel(page)["state"] == "stopped")
    scroll_to(page, "EditTrainerLoadDataset")
    page.locator(".edit-trainer-choice input").nth(1).fill("typed")
    page.keyboard.press("Enter")
    wait_until(lambda: page.evaluate(CAPTION_COLUMN) == "typed", 10)
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_reloaded_panel_shows_its_own_run(page: Page, server: Server, renderer: str) -> None:
    name = f"quick-{renderer}"
    assert server.run(training(run_name=name, params={"lora_rank": 3})).status == "execution_success"
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow(name, 6, 6))
    page.evaluate("() => app.queuePrompt(0, 1)")
    shown = "() => document.querySelector('.edit-trainer-panel .edit-trainer-name')?.textContent"
    wait_until(lambda: page.evaluate(shown) == f"{name}-2" and read_panel(page)["state"] == "finished")
    other = training(run_name=f"other-{renderer}")
    other[TRAIN] = other.pop("train")  # so that the node's last run is none of this workflow's
    assert server.run(other).status == "execution_success"
    page.reload()
    page.wait_for_selector(PANEL, state="attached")
    wait_until(lambda: read_panel(page)["state"] == "finished", 30)
    assert (page.evaluate(shown), read_panel(page)["step"]) == (f"{name}-2", 6)
    assert not log.problems
