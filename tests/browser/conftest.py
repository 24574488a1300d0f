"""A real ComfyUI page in headless Chromium. The tests are skipped without ComfyUI or Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from ..comfyui.conftest import comfyui
from ..comfyui.server import Server
from ..hub_server import HubServer, hub_server
from .helpers import PackConsole

__all__ = ["comfyui"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A hub in place of the real one, with a login of the server there."""
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Server]:
    """A server with ComfyUI's example image in its input folder, as in every installation."""
    base = tmp_path_factory.mktemp("comfyui")
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    # Otherwise the page opens with the tutorial for new users.
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")
    server = Server(comfyui, base, variables=hub.environment())
    shutil.copy(comfyui / "input" / "example.png", server.base / "input")
    yield server
    server.close()


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    """The server's page, with the pack's nodes registered. The pack may write nothing to its console."""
    browser_path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if browser_path is None or not Path(browser_path).exists():
        pytest.skip("no Chromium found: install it, or set CHROMIUM to its program")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1800, "height": 1100})
        page.set_default_timeout(180_000)
        console = PackConsole(page)
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_function("window.app?.graph && window.app.canvas && window.LiteGraph")
        page.wait_for_function("Object.keys(LiteGraph.registered_node_types).includes('EditTrainerTrain')")
        # Otherwise the page's own use of what is deprecated hides the pack's.
        page.evaluate("() => { LiteGraph.alwaysRepeatWarnings = true }")
        yield page
        browser.close()
    assert not console.lines
