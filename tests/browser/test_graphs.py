"""Graphs that the page makes of files, requests and runs: their nodes, layout, and one step of undo for each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, Route

from ..comfyui.server import PACK, Server
from .helpers import PageLog, choose_renderer, screenshot, wait_until
from .test_dataset_menus import make_request
from .test_workflows import WORKFLOWS

RENDERERS = ["classic", "vue"]
PASTE = """(text) => {
  const data = new DataTransfer()
  data.setData('text/plain', text)
  document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))
}"""
DROP = """([name, bytes]) => {
  const data = new DataTransfer()
  data.items.add(new File([new Uint8Array(bytes)], name))
  const where = { clientX: 700, clientY: 300 }
  document.querySelector('#graph-canvas').dispatchEvent(
    new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true, ...where }),
  )
}"""
BOXES = """() => app.canvas.graph.nodes.map((node) => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`)
  if (!element) return [node.type, ...node.boundingRect]
  const { left, top, width, height } = element.getBoundingClientRect()
  return [node.type, left, top, width, height].map((value) => value / app.canvas.ds.scale || value)
})"""
"""Type and box of each node as it is drawn: left, top, width and height, in graph units."""
SHOW = """([scale, offset]) => {
  Object.assign(app.canvas.ds, { scale, offset })
  app.canvas.setDirty(true, true)
}"""
"""Shows a part of the graph, at a zoom of `scale`."""
LINKS = """() => app.canvas.graph.nodes.map((node) => [
  node.type, ...(node.inputs ?? []).filter((_, slot) => node.isInputConnected(slot)).map((input) => input.name),
])"""
PLACES = "() => app.canvas.graph.nodes.map((node) => [node.type, ...[...node.pos].map(Math.round)])"
"""Type and position of each node."""
KNOWS_OF_UNDO = "() => 'captureCanvasState' in app.extensionManager.workflow.activeWorkflow.changeTracker"
"""True if the page records no change while it undoes one."""
LOADED = {"id": 1, "type": "VAEDecode", "pos": [-900, -1200]}
BEFORE = ["EmptyLatentImage", "VAEDecode"]
"""Types of the nodes of `start`."""
SAMPLES = [{"ctrl_img_url": "", "prompt": "one"}, {"ctrl_img_url": "", "prompt": "two"}]
COLUMNS_ROUTE = re.compile(r"/edit_trainer/columns\b")
PUBLISHED = {
    "resource": "main/your-dataset.parquet",
    "base_model": "<model-canonical-name>",
    "script_type": "image_editing",
    "training_params": {"caption_column": "", "control_image_column": "", "image_column": "", "steps": 3000},
}
LITERAL = """{
  "resource": "main/your-dataset.parquet",
  "base_model": "<model-canonical-name>",
  "script_type": "image_editing",
  "training_params": { ... }
}"""


def types(page: Page) -> list[str]:
    """Types of the nodes on display, sorted."""
    return sorted(page.evaluate("() => app.canvas.graph.nodes.map((node) => node.type)"))


def start(page: Page, renderer: str) -> PageLog:
    """Open a workflow of one node and add another by hand, which the page has not recorded yet."""
    choose_renderer(page, renderer)
    log = PageLog(page)
    # Older pages open their first workflow, whose history undo goes by, after the extensions are there.
    page.wait_for_function("() => app.extensionManager.workflow?.activeWorkflow?.changeTracker")
    page.evaluate("(workflow) => app.loadGraphData(workflow)", {"version": 0.4, "nodes": [LOADED], "links": []})
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0] }")
    page.mouse.click(1200, 900)
    page.evaluate(
        """() => {
          const node = LiteGraph.createNode('EmptyLatentImage')
          node.pos = [-900, -900]
          app.canvas.graph.add(node)
        }"""
    )
    return log


def wait_until_laid_out(page: Page) -> None:
    """Wait for the end of the step that adds nodes: drawing them takes a second or two without a graphics card."""
    page.wait_for_function("() => app.extensionManager.workflow.activeWorkflow.changeTracker.changeCount === 0")


@contextmanager
def pressed(page: Page, keys: list[str]) -> Iterator[None]:
    """Context after a press of keys. Older pages take a key that goes up during an undo for a change of the graph:
    there, the keys are held."""
    if page.evaluate(KNOWS_OF_UNDO):
        page.keyboard.press("+".join(keys))
        yield
        return
    for key in keys:
        page.keyboard.down(key)
    yield
    for key in reversed(keys):
        page.keyboard.up(key)


def check_undo(page: Page, before: list[str]) -> None:
    """Undo the last action, and redo it, twice: once by each key for redoing."""
    wait_until_laid_out(page)
    after = types(page)
    links = sorted(page.evaluate(LINKS))
    places = sorted(page.evaluate(PLACES))
    for redo in (["Control", "Shift", "z"], ["Control", "y"]):
        with pressed(page, ["Control", "z"]):
            wait_until(lambda: types(page) == before, 20)
            page.wait_for_timeout(500)
        assert types(page) == before
        with pressed(page, redo):
            wait_until(lambda: types(page) == after, 20)
            page.wait_for_timeout(500)
        assert sorted(page.evaluate(LINKS)) == links
        assert sorted(page.evaluate(PLACES)) == places


def check_layout(page: Page) -> None:
    """Fail where two nodes overlap, with all of them in view: the classic canvas measures a node as it draws it."""
    view = page.evaluate("() => [app.canvas.ds.scale, [...app.canvas.ds.offset]]")
    page.evaluate(SHOW, [0.2, [1500, 1500]])
    page.wait_for_timeout(500)
    boxes = page.evaluate(BOXES)
    page.evaluate(SHOW, view)
    for index, (kind, x, y, width, height) in enumerate(boxes):
        for other, left, top, breadth, depth in boxes[index + 1 :]:
            apart = x + width <= left or left + breadth <= x or y + height <= top or top + depth <= y
            assert apart, f"{kind} overlaps {other}"


def note(page: Page) -> str:
    """Text of the newest note in the graph."""
    return page.evaluate("() => app.canvas.graph.nodes.findLast(({ type }) => type === 'Note').widgets[0].value")


def values(page: Page, kind: str) -> dict[str, Any]:
    """Widget values of the first node of a type."""
    return page.evaluate(
        """(type) => Object.fromEntries(app.canvas.graph.nodes.find((node) => node.type === type).widgets
          .map((widget) => [widget.name, widget.value]))""",
        kind,
    )


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_menu_adds_a_training_graph(page: Page, server: Server, renderer: str) -> None:
    log = start(page, renderer)
    page.locator(".comfy-menu-button-wrapper, [data-testid=comfy-menu-button]").first.click()
    for entry in ("Extensions", "Edit Trainer"):
        page.get_by_role("menuitem", name=entry).first.hover()
    page.get_by_role("menuitem", name="Add training graph").last.click()
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    wait_until_laid_out(page)
    check_layout(page)
    assert values(page, "EditTrainerLoadDataset")["resource"] == ""
    check_undo(page, BEFORE)
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_parquet_dropped_on_the_canvas_becomes_a_graph_and_undo_removes_it(
    page: Page, server: Server, renderer: str
) -> None:
    log = start(page, renderer)
    data = (PACK / "example_workflows" / "edit_trainer_example.parquet").read_bytes()
    page.evaluate(DROP, [f"frames-{renderer}.parquet", list(data)])
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    check_undo(page, BEFORE)
    check_layout(page)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    nodes = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert {"model", "dataset", "params", "samples"} <= {
        name for name, value in nodes["EditTrainerTrain"].items() if isinstance(value, list)
    }
    assert nodes["EditTrainerBaseModel"]["base_model"] == "tiny/flux-kontext"
    assert nodes["EditTrainerTrain"]["run_name"] == f"frames-{renderer}"
    assert (nodes["EditTrainerParams"]["steps"], nodes["EditTrainerParams"]["sample_width"]) == (200, 64)
    dataset = nodes["EditTrainerLoadDataset"]
    assert (dataset["caption_column"], dataset["image_column"]) == ("caption", "target")
    assert nodes["EditTrainerSample"]["prompt"] == "add a red frame"
    screenshot(page, f"dropped-{renderer}", "body")
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_pasted_request_is_undone_in_one_step(page: Page, server: Server, renderer: str) -> None:
    log = start(page, renderer)
    page.evaluate(PASTE, json.dumps(make_request(samples=SAMPLES)))
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    check_undo(page, BEFORE)
    check_layout(page)
    assert "Note" not in types(page), "a request without gaps has no note"
    assert not log.problems


def test_a_graph_is_laid_out_in_a_page_that_was_switched_from_vue_nodes(page: Page, server: Server) -> None:
    choose_renderer(page, "vue")
    page.wait_for_load_state("networkidle")  # the setting is stored
    page.reload()
    page.wait_for_selector("[data-node-id]")
    page.wait_for_timeout(1000)  # in which sizes are measured
    start(page, "classic")
    page.evaluate(PASTE, json.dumps(make_request(samples=SAMPLES)))
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    wait_until_laid_out(page)
    check_layout(page)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_undo_before_a_graph_is_laid_out_removes_that_graph(page: Page, server: Server, renderer: str) -> None:
    log = start(page, renderer)
    answers: list[Route] = []
    page.route(COLUMNS_ROUTE, lambda route: answers.append(route))
    page.evaluate(PASTE, json.dumps(make_request()))
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    page.keyboard.press("Control+z")
    wait_until(lambda: types(page) == BEFORE, 20)
    assert answers, "the nodes were still being filled in"
    page.unroute(COLUMNS_ROUTE)  # which lets them through
    wait_until_laid_out(page)
    page.wait_for_timeout(500)
    assert types(page) == BEFORE
    page.keyboard.press("Control+y")
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 20)
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("text", [json.dumps(PUBLISHED), LITERAL], ids=["published", "shortened"])
def test_the_published_request_becomes_a_graph_that_names_its_gaps(
    page: Page, server: Server, renderer: str, text: str
) -> None:
    log = start(page, renderer)
    page.evaluate(PASTE, text)
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    wait_until_laid_out(page)
    assert page.locator(".p-toast-message-error").count() == 0
    assert all(field in note(page) for field in ("caption_column", "base_model")), note(page)
    assert "not complete" in note(page)
    assert values(page, "EditTrainerLoadDataset")["resource"] == "main/your-dataset.parquet"
    assert values(page, "EditTrainerBaseModel")["base_model"] == "tiny/flux-kontext"
    assert values(page, "EditTrainerParams")["steps"] == 3000
    check_layout(page)
    screenshot(page, f"published-{renderer}", "body")
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_request_pasted_into_its_node_chooses_the_base_model(page: Page, server: Server, renderer: str) -> None:
    start(page, renderer)
    page.evaluate(
        """(text) => {
          const node = LiteGraph.createNode('EditTrainerLoadRequest')
          node.pos = [100, 100]
          app.canvas.graph.add(node)
          app.canvas.centerOnNode(node)
        }""",
        "",
    )
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("(text) => navigator.clipboard.writeText(text)", json.dumps(make_request()))
    field = page.locator("textarea:visible").last
    field.click()
    page.keyboard.press("ControlOrMeta+v")
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    told = "() => document.querySelector('.edit-trainer-model').textContent"
    wait_until(lambda: "part of the pack" in page.evaluate(told), 20)
    assert values(page, "EditTrainerBaseModel")["base_model"] == "tiny/qwen-image-edit"
    page.wait_for_timeout(500)
    check_layout(page)

    field.fill(json.dumps(make_request() | {"base_model": "tiny/flux-kontext"}))
    wait_until(lambda: values(page, "EditTrainerBaseModel")["base_model"] == "tiny/flux-kontext", 20)
    field.fill("request_in_a_file.json")
    wait_until(lambda: "request chooses" in page.evaluate(told), 20)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_nodes_of_an_example_workflow_overlap(page: Page, server: Server, renderer: str, path) -> None:
    choose_renderer(page, renderer)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_timeout(1500)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    screenshot(page, f"example-{path.stem[0]}-{renderer}", "body")
    check_layout(page)
