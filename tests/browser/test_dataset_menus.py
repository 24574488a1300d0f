"""Column menus, dropped files and pasted requests in the real page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page

from ..comfyui.server import PACK, Server
from .helpers import PageLog, choose_renderer, load, scroll_to, short_workflow, wait_until

RENDERERS = ["classic", "vue"]
VALUES = """() => Object.fromEntries(app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset').widgets
  .map((widget) => [widget.name, widget.value]))"""
DROP = """([name, bytes]) => {
  const node = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  const data = new DataTransfer()
  data.items.add(new File([new Uint8Array(bytes)], name))
  return node.onDragDrop(new DragEvent('drop', { dataTransfer: data }))
}"""


def write_twelve_columns(path: Path) -> None:
    """Write a parquet file with twelve columns of different types."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {f"number_{index}": [index, index] for index in range(4)}
    columns |= {"score": [0.5, 0.1], "is_test": [True, False], "license": ["CC0", "CC0"], "<b>tag</b>": ["x", "y"]}
    columns |= {"instruction": ["make it red", "make it blue"]}
    table = pa.table(columns)
    for name in ("source_img", "mask_img", "target_img"):
        table = table.append_column(name, pa.nulls(2, image))
    pq.write_table(table, path)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_columns_are_menus_and_any_value_can_be_typed(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    write_twelve_columns(server.base / "input" / "twelve.parquet")
    workflow = short_workflow("menus", 4, 4)
    dataset = next(node for node in workflow["nodes"] if node["type"] == "EditTrainerLoadDataset")
    dataset["widgets_values"][:4] = ["twelve.parquet", "typed by hand", "", ""]
    load(page, workflow)
    scroll_to(page, "EditTrainerLoadDataset")
    wait_until(lambda: page.get_by_text("2 rows, 12 columns").is_visible(), 30)
    values = page.evaluate(VALUES)
    assert [values[name] for name in ("caption_column", "control_image_column")] == ["typed by hand", ""], "as saved"

    field = page.locator(".edit-trainer-choice input").nth(2)
    field.focus()
    page.keyboard.press("ArrowDown")
    menu = page.locator(".edit-trainer-menu:popover-open")
    menu.wait_for()
    offered = menu.locator(".edit-trainer-option span").all_inner_texts()
    assert set(offered[:3]) == {"source_img", "mask_img", "target_img"}
    assert "<b>tag</b>" in offered
    assert len(offered) == 12
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUES)["control_image_column"] == "source_img"
    field.fill("anything at all")
    page.keyboard.press("Enter")
    saved = page.evaluate(
        "() => app.graph.serialize().nodes.find((node) => node.type === 'EditTrainerLoadDataset').widgets_values"
    )
    assert saved[:6] == ["twelve.parquet", "typed by hand", "anything at all", "", "", "stop"]

    resource = page.locator(".edit-trainer-choice input").nth(0)
    for index in (1, 2, 3):
        page.locator(".edit-trainer-choice input").nth(index).fill("")
    resource.fill("main/twelve.parquet")
    wait_until(lambda: page.evaluate(VALUES)["image_column"] == "target_img", 30)
    values = page.evaluate(VALUES)
    assert (values["caption_column"], values["control_image_column"]) == ("instruction", "source_img")
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_dropped_parquet_is_uploaded_and_shown(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow("dropped", 4, 4))
    scroll_to(page, "EditTrainerLoadDataset")
    data = (PACK / "example_workflows" / "edit_trainer_example.parquet").read_bytes()
    name = f"dropped {renderer} <i>.parquet".replace("<i>", "(1)")
    assert page.evaluate(DROP, [name, list(data)])
    wait_until(lambda: page.evaluate(VALUES)["resource"] == name, 60)
    assert (server.base / "input" / name).read_bytes() == data
    wait_until(lambda: page.locator(".edit-trainer-first img[src]").count() == 6, 30)
    wait_until(lambda: page.evaluate(VALUES)["control_image_column"] == "control", 10)
    assert not log.problems


def make_request(**params: Any) -> dict[str, Any]:
    """A fine-tune request for the example dataset."""
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    return {
        "resource": "main/edit_trainer_example.parquet",
        "base_model": "tiny/qwen-image-edit",
        "script_type": "image_editing",
        "training_params": columns | params,
    }


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_request_pasted_into_its_node_trains(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """() => {
          app.graph.clear()
          const node = LiteGraph.createNode('EditTrainerLoadRequest')
          node.pos = [300, 200]
          app.graph.add(node)
        }"""
    )
    scroll_to(page, "EditTrainerLoadRequest")
    samples = [{"ctrl_img_url": "", "prompt": "add a red frame"}]
    request = make_request(steps=2, sample_every=2, sample_width=64, sample_height=64, samples=samples)
    page.evaluate("(text) => navigator.clipboard.writeText(text)", json.dumps(request, indent=1))
    field = page.locator("textarea:visible").first
    field.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("ControlOrMeta+v")
    wait_until(lambda: page.evaluate("() => app.graph.nodes.length") == 4, 30)
    assert json.loads(field.input_value()) == request
    page.evaluate(
        """(name) => {
          const node = app.graph.nodes.find((node) => node.type === 'EditTrainerTrain')
          node.widgets.find((widget) => widget.name === 'run_name').value = name
          app.queuePrompt(0, 1)
        }""",
        f"pasted-{renderer}",
    )
    wait_until(lambda: any(line["run"] == f"pasted-{renderer}" for line in server.get("/edit_trainer/archive")), 120)
    wait_until(lambda: not server.get("/queue")["queue_running"], 120)
    run = server.get(f"/edit_trainer/archive/pasted-{renderer}")
    assert (run["state"], run["step"], run["base_model"]) == ("finished", 2, "tiny/qwen-image-edit")
    assert not log.problems


def test_a_pasted_request_becomes_a_graph(page: Page, server: Server) -> None:
    choose_renderer(page, "classic")
    page.evaluate("() => app.graph.clear()")
    samples = [{"ctrl_img_url": "", "prompt": "<b>one</b>"}, {"ctrl_img_url": "", "prompt": "two"}]
    request = make_request(steps=33, learning_rate=0.00005, samples=samples)
    paste = """(text) => {
      const data = new DataTransfer()
      data.setData('text/plain', text)
      document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))
    }"""
    page.evaluate(paste, json.dumps(request))
    wait_until(
        lambda: page.evaluate("() => app.graph.nodes.some((node) => node.type === 'EditTrainerPreviewSamples')"), 30
    )
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for node in prompt.values():
        kinds.setdefault(node["class_type"], []).append(node["inputs"])
    assert kinds["EditTrainerParams"][0]["steps"] == 33
    assert kinds["EditTrainerParams"][0]["learning_rate"] == 0.00005
    assert kinds["EditTrainerLoadDataset"][0]["control_image_column"] == "control"
    assert kinds["EditTrainerBaseModel"][0]["base_model"] == "tiny/qwen-image-edit"
    assert {sample["prompt"] for sample in kinds["EditTrainerSample"]} == {"<b>one</b>", "two"}
    assert {"model", "dataset", "params", "samples"} <= {
        name for name, value in kinds["EditTrainerTrain"][0].items() if isinstance(value, list)
    }
    request["training_params"]["steps"] = -1
    page.evaluate(paste, json.dumps(request))
    notes = "() => app.graph.nodes.filter(({ type }) => type === 'Note').map(({ widgets }) => widgets[0].value)"
    wait_until(lambda: any("steps" in text for text in page.evaluate(notes)), 30)
