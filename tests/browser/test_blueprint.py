"""The blueprint of a whole training: one node, whose inputs are those that a person sets."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page

from ..comfyui.server import PACK, Server
from .helpers import PageLog, choose_renderer, wait_until

(BLUEPRINT,) = (PACK / "subgraphs").glob("*.json")
SHORT = {
    "steps": 4,
    "learning_rate": 0.001,
    "lora_rank": 3,
    "sample_every": 2,
    "sample_width": 64,
    "sample_height": 96,
}
"""Inputs of the node, all of them different, so that none is taken for another."""
SET = """(values) => {
  const [node] = app.graph.nodes
  for (const [name, value] of Object.entries(values)) {
    const widget = node.widgets.find((widget) => widget.name === name)
    widget.value = value
    widget.callback?.(value)
  }
}"""
WIDGETS = "() => app.graph.nodes[0].widgets.map((widget) => [widget.name, widget.value])"


def test_the_server_lists_it(server: Server) -> None:
    (entry,) = [entry for entry in server.get("/global_subgraphs").values() if entry["name"] == BLUEPRINT.stem]
    assert entry["info"]["node_pack"] == f"custom_nodes.{PACK.name}"


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_it_trains_what_is_set_on_its_node(page: Page, server: Server, renderer: str) -> None:
    blueprint = json.loads(BLUEPRINT.read_text(encoding="utf-8"))
    choose_renderer(page, renderer)
    log = PageLog(page)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", blueprint)
    (node,) = blueprint["nodes"]
    names = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    assert page.evaluate(WIDGETS) == [list(pair) for pair in zip(names, node["widgets_values"], strict=True)]
    run_name = f"blueprint-{renderer}"
    page.evaluate(SET, SHORT | {"run_name": run_name})
    page.evaluate("() => app.queuePrompt(0, 1)")
    wait_until(lambda: (server.output / "loras" / f"{run_name}-000004.safetensors").is_file(), 300)
    wait_until(lambda: not server.get("/queue")["queue_running"], 60)
    request = json.loads((server.output / "edit_trainer" / run_name / "request.json").read_text(encoding="utf-8"))
    assert SHORT.items() <= request["training_params"].items()
    assert request["training_params"]["samples"][0]["prompt"] == "add a red frame"
    assert not log.problems
