"""From pictures to a trained LoRA in the page: two folders, and pairs that the graph makes itself."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from ..comfyui.server import Server
from ..trainer.edits import png
from .helpers import PageLog, choose_renderer, load, read_panel, screenshot, short_workflow, wait_until

EXCHANGE = """([type, values]) => {
  const old = app.graph.nodes.find((node) => node.type === 'EditTrainerLoadDataset')
  const made = LiteGraph.createNode(type)
  made.pos = [old.pos[0], old.pos[1]]
  app.graph.add(made)
  for (const [slot, output] of old.outputs.entries())
    for (const id of [...(output.links ?? [])]) {
      const link = app.graph.links.get?.(id) ?? app.graph.links[id]
      made.connect(slot, app.graph.getNodeById(link.target_id), link.target_slot)
    }
  app.graph.remove(old)
  for (const [name, value] of Object.entries(values)) made.widgets.find((widget) => widget.name === name).value = value
}"""
"""Puts a node in the place of Load Edit Dataset, with all of its links, and types values into it."""
FEED = """(picture) => {
  const added = app.graph.nodes.find((node) => node.type === 'EditTrainerAddExample')
  const load = LiteGraph.createNode('LoadImage')
  const invert = LiteGraph.createNode('ImageInvert')
  load.pos = [added.pos[0] - 760, added.pos[1]]
  invert.pos = [added.pos[0] - 320, added.pos[1] + 80]
  app.graph.add(load)
  app.graph.add(invert)
  load.widgets.find((widget) => widget.name === 'image').value = picture
  const slot = (name) => added.inputs.findIndex((input) => input.name === name)
  load.connect(0, added, slot('control_image'))
  load.connect(0, invert, 0)
  invert.connect(0, added, slot('target_image'))
}"""
"""Connects a picture and its inversion to Add Edit Example."""


def start(page: Page, renderer: str, run_name: str, node: str, values: dict[str, Any]) -> PageLog:
    """The first example workflow with another node in place of its dataset."""
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow(run_name, steps=6, sample_every=6))
    page.evaluate(EXCHANGE, [node, values])
    return log


def run(page: Page, name: str) -> None:
    """Press Run and wait for the end."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.get_by_test_id("queue-button").click()
    wait_until(lambda: (shown := read_panel(page))["state"] == "finished" and shown["small"])
    page.wait_for_timeout(1500)
    screenshot(page, name, "body")


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_two_folders_of_pictures_become_a_lora(page: Page, server: Server, renderer: str) -> None:
    for n in range(3):
        for folder, color in (("before", n * 20), ("after", 255 - n * 20)):
            path = server.base / "input" / f"photos-{renderer}" / folder / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(color, (64, 64)))
    values = {"folder": f"photos-{renderer}", "control_folder": "before", "target_folder": "after"}
    log = start(page, renderer, f"folders-{renderer}", "EditTrainerMakeDataset", values | {"caption": "invert it"})
    run(page, f"own-folders-{renderer}")
    assert (server.base / "input" / f"photos-{renderer}.parquet").is_file()
    assert (server.output / "loras" / f"folders-{renderer}-000006.safetensors").is_file()
    assert not log.problems
    assert not log.other_hosts


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_graph_that_makes_its_own_pair(page: Page, server: Server, renderer: str) -> None:
    picture = f"own-{renderer}.png"
    (server.base / "input" / picture).write_bytes(png(30, (64, 64)))
    values = {"caption": "invert the colors", "name": f"collected-{renderer}"}
    log = start(page, renderer, f"collected-{renderer}", "EditTrainerAddExample", values)
    page.evaluate(FEED, picture)
    run(page, f"own-pairs-{renderer}")
    assert (server.base / "input" / f"collected-{renderer}" / "dataset.parquet").is_file()
    assert (server.output / "loras" / f"collected-{renderer}-000006.safetensors").is_file()
    assert not log.problems
