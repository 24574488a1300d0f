"""A user's first minutes: from an empty canvas through the templates browser to the first finished run."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.server import PACK, Server
from .helpers import PageLog, choose_renderer, read_panel, screenshot, scroll_to, wait_until
from .test_dataset_menus import make_request
from .test_graphs import DROP, PASTE, PUBLISHED, start, types, wait_until_laid_out

WORKFLOW = "1_train_and_edit_tiny"


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_the_first_workflow_from_the_templates_browser(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    page.evaluate("() => app.graph.clear()")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog").first
    dialog.get_by_text(PACK.name, exact=True).first.click()
    dialog.get_by_text(re.compile(WORKFLOW.replace("_", "[ _]"), re.IGNORECASE)).first.click()
    wait_until(lambda: page.evaluate("() => app.graph.nodes.some((node) => node.type === 'EditTrainerTrain')"), 60)
    scroll_to(page, "EditTrainerTrain")
    # Both renderers share a server: under the same name the second would find a finished run.
    page.evaluate(
        """(name) => {
          const node = app.graph.nodes.find((node) => node.type === 'EditTrainerTrain')
          node.widgets.find((widget) => widget.name === 'run_name').value = name
        }""",
        f"first-{renderer}",
    )
    expect(page.get_by_test_id("queue-button")).to_be_visible()
    page.get_by_test_id("queue-button").click()
    seen = {wait_until(lambda: (shown := read_panel(page))["state"] == "running" and shown["phase"])}
    screenshot(page, f"first-{renderer}-1")
    middle = wait_until(lambda: (shown := read_panel(page))["step"] and shown["left"] and shown)
    wait_until(lambda: read_panel(page)["bar"] > 0.6)
    screenshot(page, f"first-{renderer}-2")
    last = wait_until(lambda: (shown := read_panel(page))["state"] == "finished" and shown, 900)
    seen |= {middle["phase"], last["phase"]}
    assert len(seen) > 1
    assert 0 < middle["bar"] < last["bar"] == 1
    assert last["small"] > middle["small"]
    page.wait_for_timeout(500)
    screenshot(page, f"first-{renderer}-3")
    wait_until(lambda: not server.get("/queue")["queue_running"], 120)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    screenshot(page, f"first-{renderer}-graph", "body")
    assert any("EditTrainerEdit" in str(node) for node in page.evaluate("() => app.graph.nodes.map((n) => n.type)"))
    assert not log.problems
    assert not log.other_hosts


def press_run(page: Page) -> None:
    """Press Run, once the graph has been added."""
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    wait_until_laid_out(page)
    expect(page.get_by_test_id("queue-button")).to_be_visible()
    page.get_by_test_id("queue-button").click()
    wait_until(lambda: read_panel(page)["step"] >= 1)


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_dropped_parquet_is_trained_when_run_is_pressed(page: Page, server: Server, renderer: str) -> None:
    log = start(page, renderer)
    data = (PACK / "example_workflows" / "edit_trainer_example.parquet").read_bytes()
    page.evaluate(DROP, [f"mine-{renderer}.parquet", list(data)])
    press_run(page)
    wait_until(lambda: (shown := read_panel(page))["state"] == "finished" and shown["small"], 600)
    screenshot(page, f"dropped-{renderer}-trained", "body")
    assert (server.output / "loras" / f"mine-{renderer}-000200.safetensors").is_file()
    wait_until(lambda: not server.get("/queue")["queue_running"], 120)
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_the_published_request_with_its_gaps_filled_is_trained(page: Page, server: Server, renderer: str) -> None:
    log = start(page, renderer)
    columns = make_request()["training_params"]
    request = PUBLISHED | {"resource": "main/edit_trainer_example.parquet", "base_model": "tiny/flux-kontext"}
    request["training_params"] = PUBLISHED["training_params"] | columns
    page.evaluate(PASTE, json.dumps(request))
    press_run(page)
    assert "Note" not in types(page), "nothing is left open"
    page.get_by_role("button", name="Stop and save").click()
    stopped = wait_until(lambda: (shown := read_panel(page))["state"] == "stopped" and shown)
    assert stopped["step"] >= 1
    wait_until(lambda: not server.get("/queue")["queue_running"], 120)
    assert not log.problems
