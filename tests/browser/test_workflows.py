"""The example workflows in the real page: all of them load completely, and those of the tiny models run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from ..comfyui.server import PACK, Server

WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
TINY_WORKFLOWS = [path for path in WORKFLOWS if path.stem[0] in "125"]
MODEL_FILES = (".safetensors", ".gguf", ".pth")
RUN_SECONDS = 900

LOADED = """async (workflow) => {
  await app.loadGraphData(workflow)
  return app.graph.nodes.map((node) => ({
    id: node.id,
    type: node.type,
    known: Boolean(LiteGraph.registered_node_types[node.type]),
    values: node.serialize().widgets_values ?? [],
    links: (node.inputs ?? []).filter((_, slot) => node.isInputConnected(slot)).map((input) => input.name),
    widgets: (node.widgets ?? [])
      .filter((widget) => widget.options?.serialize !== false && widget.serialize !== false)
      .map((widget) => ({
        name: widget.name,
        value: widget.value,
        min: widget.options?.min,
        max: widget.options?.max,
        values: Array.isArray(widget.options?.values) ? widget.options.values : null,
      })),
  }))
}"""


def load(page: Page, path: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The workflow in the file, and the nodes that the page created from it, by id."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    return workflow, {int(node["id"]): node for node in page.evaluate(LOADED, workflow)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_loads_completely(page: Page, path: Path) -> None:
    workflow, nodes = load(page, path)
    assert len(nodes) == len(workflow["nodes"])
    for node in workflow["nodes"]:
        shown = nodes[node["id"]]
        assert shown["known"], f"missing node {node['type']}"
        linked = [slot["name"] for slot in node["inputs"] if slot["link"] is not None]
        assert sorted(linked) == sorted(shown["links"]), f"{node['type']}: missing link"
        values = shown["values"]
        assert values[: len(node["widgets_values"])] == node["widgets_values"], node["type"]
        for widget in shown["widgets"]:
            place, value = f"{node['type']}.{widget['name']}", widget["value"]
            if widget["values"] is not None and not str(value).endswith(MODEL_FILES):
                assert value in widget["values"], place
            if isinstance(value, int | float) and widget["min"] is not None:
                assert widget["min"] <= value <= widget["max"], place


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_a_thumbnail(path: Path) -> None:
    assert path.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("path", TINY_WORKFLOWS, ids=lambda path: path.stem)
def test_a_tiny_workflow_runs_when_run_is_pressed(page: Page, server: Server, path: Path) -> None:
    load(page, path)
    page.evaluate("() => app.queuePrompt(0, 1)")
    end = time.monotonic() + RUN_SECONDS
    while not (done := [entry for entry in server.get("/history").values() if workflow_path(entry) == path]):
        assert time.monotonic() < end, server.log.read_text(errors="replace")[-2000:]
        time.sleep(1)
    entry = done[0]
    assert entry["status"]["status_str"] == "success", entry["status"]
    kinds = {node_id: node["class_type"] for node_id, node in entry["prompt"][2].items()}
    shown = {kinds[node_id]: output for node_id, output in entry["outputs"].items()}
    assert "steps done" in shown["EditTrainerTrain"]["text"][0]
    assert shown["EditTrainerPreviewSamples"]["images"]
    picture = shown["SaveImage"]["images"][0]
    assert (server.output / picture["subfolder"] / picture["filename"]).is_file()
    assert list((server.output / "loras").glob(f"{run_name(entry)}-*.safetensors"))


def run_name(entry: dict[str, Any]) -> str | None:
    """Run name of a finished prompt's training; None if it has none."""
    kinds = {node["class_type"]: node for node in entry["prompt"][2].values()}
    return kinds["EditTrainerTrain"]["inputs"]["run_name"] if "EditTrainerTrain" in kinds else None


def workflow_path(entry: dict[str, Any]) -> Path | None:
    """Workflow file that a finished prompt came from."""
    names = ("tiny-frame", "tiny-request", "tiny-two-images")
    return dict(zip(names, TINY_WORKFLOWS, strict=True)).get(run_name(entry) or "")
