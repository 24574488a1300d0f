"""What the browser tests of the pack's own page parts share: a workflow that trains shortly, and what the page says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request

from ..comfyui.server import PACK

OF_COMFYUI = (
    "legacy queue/history menu",
    "[MaskEditor]",
    "accessed before initialization",
    "user.css",
    "/userdata",
    "Comfy-Org/",
    "for graph that was never set up",
    "Subgraph not found",
)
"""Parts of errors and warnings that the page says without the pack as well."""
WITH_PARTS = ("EditTrainerTrain", "EditTrainerLoadDataset", "EditTrainerBaseModel")
PANEL = ".edit-trainer-panel"
SHOTS = os.environ.get("EDIT_TRAINER_SHOTS")
"""Where pictures of the page are put, when they are wanted."""


class Said:
    """Errors and warnings of the page, and the other hosts that it asked, from now on."""

    def __init__(self, page: Page) -> None:
        self.lines: list[str] = []
        self.hosts: set[str] = set()
        self._own = urlsplit(page.url).netloc
        page.on("console", self._line)
        page.on("pageerror", lambda error: self.lines.append(str(error)))
        page.on("request", self._request)

    def _line(self, message: ConsoleMessage) -> None:
        text = f"{message.type}: {message.text} ({message.location.get('url', '')})"
        if message.type in ("error", "warning") and not any(part in text for part in OF_COMFYUI):
            self.lines.append(text)

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if "/Comfy-Org/" in request.url:
            return
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self._own:
            self.hosts.add(address.netloc)


def short_workflow(run_name: str, steps: int, sample_every: int) -> dict[str, Any]:
    """The first example workflow with a run of so many small steps."""
    path = next((PACK / "example_workflows").glob("1_*.json"))
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in workflow["nodes"]}
    values = nodes["EditTrainerParams"]["widgets_values"]
    values[0], values[6], values[9] = 1, sample_every, steps
    nodes["EditTrainerTrain"]["widgets_values"][0] = run_name
    return workflow


def choose_renderer(page: Page, renderer: str) -> None:
    """Classic canvas or Vue nodes, and no dialog in the way."""
    change = "(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(change, renderer == "vue")
    page.keyboard.press("Escape")


def load(page: Page, workflow: dict[str, Any]) -> None:
    """Load a workflow and look at its Train node at 100 %."""
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    look_at(page, "EditTrainerTrain")


def look_at(page: Page, kind: str, scale: float = 1.0) -> None:
    page.evaluate(
        """([kind, scale]) => {
          const node = app.canvas.graph.nodes.find((node) => node.type === kind)
          app.canvas.ds.scale = scale
          app.canvas.ds.offset = [120 / scale - node.pos[0], 110 / scale - node.pos[1]]
          app.canvas.setDirty(true, true)
        }""",
        [kind, scale],
    )


def shoot(page: Page, name: str, part: str = PANEL) -> None:
    """Take a picture of a part of the page, when pictures are wanted."""
    if SHOTS:
        page.locator(part).first.screenshot(path=Path(SHOTS) / f"{name}.png")


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What the condition gives once it holds. Raises AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)
    return found


def panel(page: Page) -> dict[str, Any]:
    """What the panel says."""
    return page.evaluate(
        """() => {
          const panel = document.querySelector('.edit-trainer-panel')
          const text = (name) => panel.querySelector(name)?.textContent ?? ''
          return {
            state: panel.dataset.state, phase: text('.edit-trainer-phase'), left: text('.edit-trainer-left'),
            step: Number(text('.edit-trainer-step dd').split('/')[0].trim()) || 0,
            loss: text('.edit-trainer-loss dd'), bar: panel.querySelector('progress').value,
            small: panel.querySelectorAll('.edit-trainer-small').length,
            message: text('.edit-trainer-message'),
          }
        }"""
    )


def ours(workflow: str) -> dict[str, Any]:
    """Of a saved workflow the values of the pack's nodes, and the sizes of those with parts of the pack's own."""
    nodes = [node for node in json.loads(workflow)["nodes"] if node["type"].startswith("EditTrainer")]
    sizes = {node["id"]: node["size"] for node in nodes if node["type"] in WITH_PARTS}
    return {"values": {node["id"]: node.get("widgets_values") or [] for node in nodes}, "sizes": sizes}
