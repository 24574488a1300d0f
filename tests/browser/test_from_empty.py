"""From an empty canvas, as a person does it: the templates browser, the first workflow, Run."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.server import PACK, Server
from .watch import Said, choose_renderer, look_at, panel, shoot, until

WORKFLOW = "1_train_and_edit_tiny"


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_the_first_workflow_from_the_templates_browser(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    said = Said(page)
    page.evaluate("() => app.graph.clear()")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog").first
    dialog.get_by_text(PACK.name, exact=True).first.click()
    dialog.get_by_text(re.compile(WORKFLOW.replace("_", "[ _]"), re.IGNORECASE)).first.click()
    until(lambda: page.evaluate("() => app.graph.nodes.some((node) => node.type === 'EditTrainerTrain')"), 60)
    look_at(page, "EditTrainerTrain")
    # Both renderers share a server, where a run of the same name would be found finished.
    page.evaluate(
        """(name) => {
          const node = app.graph.nodes.find((node) => node.type === 'EditTrainerTrain')
          node.widgets.find((widget) => widget.name === 'run_name').value = name
        }""",
        f"first-{renderer}",
    )
    expect(page.get_by_test_id("queue-button")).to_be_visible()
    page.get_by_test_id("queue-button").click()
    seen = {until(lambda: (shown := panel(page))["state"] == "running" and shown["phase"])}
    shoot(page, f"first-{renderer}-1")
    middle = until(lambda: (shown := panel(page))["step"] and shown["left"] and shown)
    until(lambda: panel(page)["bar"] > 0.6)
    shoot(page, f"first-{renderer}-2")
    last = until(lambda: (shown := panel(page))["state"] == "finished" and shown, 900)
    seen |= {middle["phase"], last["phase"]}
    assert len(seen) > 1
    assert 0 < middle["bar"] < last["bar"] == 1
    assert last["small"] > middle["small"]
    page.wait_for_timeout(500)
    shoot(page, f"first-{renderer}-3")
    until(lambda: not server.get("/queue")["queue_running"], 120)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    shoot(page, f"first-{renderer}-graph", "body")
    assert any("EditTrainerEdit" in str(node) for node in page.evaluate("() => app.graph.nodes.map((n) => n.type)"))
    assert not said.lines
    assert not said.hosts
