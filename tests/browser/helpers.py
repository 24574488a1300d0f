"""Helpers for tests in the real page: a short training workflow, and what the page logs and shows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request

from ..comfyui.server import PACK

COMFYUI_MESSAGES = (
    "legacy queue/history menu",
    "[MaskEditor]",
    "accessed before initialization",
    "user.css",
    "/userdata",
    "Comfy-Org/",
    "for graph that was never set up",
    "Subgraph not found",
    "Invalid layout total size",
    "is deprecated. Read connectivity",
)
"""Parts of errors and warnings that ComfyUI's page also logs without the pack."""
NODES_WITH_VIEWS = ("EditTrainerTrain", "EditTrainerLoadDataset", "EditTrainerBaseModel")
"""Nodes to which the page adds an element of the pack."""
DEPRECATION = re.compile(r"warnDeprecated$|get( |$)")
"""Functions of the page between who reads a deprecated property and the console: its getter, a proxy's, a warning."""
PANEL = ".edit-trainer-panel"
SCREENSHOTS = os.environ.get("EDIT_TRAINER_SHOTS")
"""Folder for screenshots; without it none are taken."""


class PageLog:
    """Errors and warnings that the page logs from now on, and hosts other than the server that it contacts."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.other_hosts: set[str] = set()
        self._server = urlsplit(page.url).netloc
        page.on("console", self._on_message)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._on_request)

    def _on_message(self, message: ConsoleMessage) -> None:
        text = f"{message.type}: {message.text} ({message.location.get('url', '')})"
        if message.type in ("error", "warning") and not any(part in text for part in COMFYUI_MESSAGES):
            self.problems.append(text)

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if "/Comfy-Org/" in request.url:
            return
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self._server:
            self.other_hosts.add(address.netloc)


class PackConsole:
    """What the pack's own code writes to the console, or has the page write by its use of something deprecated, and
    exceptions whose call stack leads through a file of the pack."""

    def __init__(self, page: Page) -> None:
        self.lines: list[str] = []
        self._devtools = page.context.new_cdp_session(page)
        self._devtools.on("Runtime.consoleAPICalled", self._on_call)
        self._devtools.on("Runtime.exceptionThrown", self._on_exception)
        self._devtools.send("Runtime.enable")

    def _on_call(self, call: dict[str, Any]) -> None:
        texts = [str(part.get("value", part.get("description", ""))) for part in call["args"]]
        frames = call.get("stackTrace", {}).get("callFrames", [])
        writers = [frame for frame in frames if not DEPRECATION.match(frame["functionName"])]
        self._keep(f"{call['type']}: {' '.join(texts)}", writers[:1])

    def _on_exception(self, event: dict[str, Any]) -> None:
        details = event["exceptionDetails"]
        text = details.get("exception", {}).get("description", details["text"])
        self._keep(f"exception: {text}", details.get("stackTrace", {}).get("callFrames", []))

    def _keep(self, text: str, frames: list[dict[str, Any]]) -> None:
        ours = next((frame["url"] for frame in frames if f"/extensions/{PACK.name}/" in frame["url"]), None)
        if ours:
            self.lines.append(f"{text} ({ours})")


def short_workflow(run_name: str, steps: int, sample_every: int) -> dict[str, Any]:
    """The first example workflow, with the given number of steps at batch size 1."""
    path = next((PACK / "example_workflows").glob("1_*.json"))
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in workflow["nodes"]}
    values = nodes["EditTrainerParams"]["widgets_values"]
    values[0], values[6], values[9] = 1, sample_every, steps
    nodes["EditTrainerTrain"]["widgets_values"][0] = run_name
    return workflow


def choose_renderer(page: Page, renderer: str) -> None:
    """Switch to the classic canvas or to Vue nodes, and close any open dialog."""
    change = "(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(change, renderer == "vue")
    page.keyboard.press("Escape")


def load(page: Page, workflow: dict[str, Any]) -> None:
    """Load a workflow and scroll to its Train node."""
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    scroll_to(page, "EditTrainerTrain")


def scroll_to(page: Page, node_type: str, scale: float = 1.0) -> None:
    """Scroll the canvas to the first node of a type, at a zoom of `scale`."""
    page.evaluate(
        """([type, scale]) => {
          const node = app.canvas.graph.nodes.find((node) => node.type === type)
          app.canvas.ds.scale = scale
          app.canvas.ds.offset = [120 / scale - node.pos[0], 110 / scale - node.pos[1]]
          app.canvas.setDirty(true, true)
        }""",
        [node_type, scale],
    )


def screenshot(page: Page, name: str, selector: str = PANEL) -> None:
    """Save a screenshot of an element if EDIT_TRAINER_SHOTS names a folder."""
    if SCREENSHOTS:
        page.locator(selector).first.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def wait_until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Poll a condition until it is true, and return its value. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still not true after {seconds} s"
        time.sleep(0.1)
    return value


def read_panel(page: Page) -> dict[str, Any]:
    """State, texts and numbers on the first panel of the page."""
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


def pack_nodes(workflow: str) -> dict[str, Any]:
    """Widget values of the pack's nodes in a saved workflow, and sizes of those to which the page adds an element."""
    nodes = [node for node in json.loads(workflow)["nodes"] if node["type"].startswith("EditTrainer")]
    sizes = {node["id"]: node["size"] for node in nodes if node["type"] in NODES_WITH_VIEWS}
    return {"values": {node["id"]: node.get("widgets_values") or [] for node in nodes}, "sizes": sizes}
