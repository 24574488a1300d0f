"""Inputs that few people touch: newer pages fold them, and what a workflow has set in them stays."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from ..comfyui.server import Server
from .helpers import PageLog, choose_renderer, load, scroll_to, short_workflow, wait_until

VALUES = """() => Object.fromEntries(app.graph.nodes.map((node) => [
  node.type, (node.widgets ?? []).map(({ name, value }) => [name, value]),
]))"""
BUTTON = "advanced-inputs-button"


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
