"""A Train node inside a subgraph: its panel shows the run queued from the root graph, also after a reload."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from ..comfyui.server import Server
from .helpers import PANEL, PageLog, choose_renderer, load, read_panel, scroll_to, short_workflow, wait_until

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
    log = PageLog(page)
    load(page, short_workflow(f"inside-{renderer}", 5000, 5000))
    subgraph = page.evaluate(ENCLOSE)
    page.evaluate("() => app.queuePrompt(0, 1)")
    wait_until(lambda: any(run_names(server, subgraph)), 120)
    page.evaluate(ENTER, subgraph)
    page.wait_for_timeout(1000)
    scroll_to(page, "EditTrainerTrain")
    wait_until(lambda: page.locator(PANEL).is_visible(), 30)
    running = wait_until(lambda: (shown := read_panel(page))["step"] >= 2 and shown)
    assert running["state"] == "running"

    page.evaluate("() => app.extensionManager.command.execute('Comfy.Graph.ExitSubgraph')")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes.length > 2")
    page.wait_for_timeout(5000)  # The page returns to the root graph once it has restored the workflow.
    page.evaluate(ENTER, subgraph)
    page.wait_for_timeout(1000)
    scroll_to(page, "EditTrainerTrain")
    again = wait_until(lambda: page.locator(PANEL).is_visible() and (shown := read_panel(page))["step"] and shown, 30)
    assert again["step"] >= running["step"]
    assert again["small"] >= running["small"] >= 2
    page.locator(PANEL).get_by_role("button", name="Stop and save").click()
    wait_until(lambda: read_panel(page)["state"] == "stopped", 60)
    assert not log.problems


def run_names(server: Server, subgraph: str) -> list[str]:
    """Names of the runs of nodes inside the subgraph."""
    found = [server.get(f"/edit_trainer/runs/{subgraph}:{node}") for node in range(1, 20)]
    return [live_run["run"] for live_run in found if live_run]
