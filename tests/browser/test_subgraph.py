"""A Train node inside a subgraph: its panel shows the run that was queued from outside, also after a reload."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from ..comfyui.server import Server
from .watch import PANEL, Said, choose_renderer, load, look_at, panel, short_workflow, until

ENCLOSE = """() => {
  const inside = app.graph.nodes.filter((node) => ['EditTrainerTrain', 'EditTrainerParams'].includes(node.type))
  const { node } = app.graph.convertToSubgraph(new Set(inside))
  return String(node.id)
}"""
ENTER = """(id) => {
  const node = app.graph.getNodeById(id)
  app.canvas.openSubgraph(node.subgraph, node)
}"""


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_the_panel_of_a_train_node_in_a_subgraph(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    said = Said(page)
    load(page, short_workflow(f"inside-{renderer}", 5000, 5000))
    subgraph = page.evaluate(ENCLOSE)
    page.evaluate("() => app.queuePrompt(0, 1)")
    until(lambda: any(feed_of(server, subgraph)), 120)
    page.evaluate(ENTER, subgraph)
    page.wait_for_timeout(1000)
    look_at(page, "EditTrainerTrain")
    until(lambda: page.locator(PANEL).is_visible(), 30)
    running = until(lambda: (shown := panel(page))["step"] >= 2 and shown)
    assert running["state"] == "running"

    page.evaluate("() => app.extensionManager.command.execute('Comfy.Graph.ExitSubgraph')")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes.length > 2")
    page.wait_for_timeout(5000)  # The page goes to the top once it has restored the graph.
    page.evaluate(ENTER, subgraph)
    page.wait_for_timeout(1000)
    look_at(page, "EditTrainerTrain")
    again = until(lambda: page.locator(PANEL).is_visible() and (shown := panel(page))["step"] and shown, 30)
    assert again["step"] >= running["step"]
    assert again["small"] >= running["small"] >= 2
    page.locator(PANEL).get_by_role("button", name="Stop and save").click()
    until(lambda: panel(page)["state"] == "stopped", 60)
    assert not said.lines


def feed_of(server: Server, subgraph: str) -> list[str]:
    """The step that the run inside has come to, as text, when there is one."""
    found = [server.get(f"/edit_trainer/runs/{subgraph}:{node}") for node in range(1, 20)]
    return [live_run["run"] for live_run in found if live_run]
