"""The held-out loss in the panel and in the runs tab: a second curve, its lowest step, and a word when it has risen."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.graphs import training
from ..comfyui.run_snapshots import first_message
from ..comfyui.server import Server
from .contrast import check_contrast, choose_palette
from .helpers import PageLog, choose_renderer, load, read_panel, screenshot, short_workflow, wait_until
from .test_colors import SHOW

RENDERERS = ["classic", "vue"]
PIXELS = """(variable) => {
  const panel = document.querySelector('.edit-trainer-panel')
  const probe = document.createElement('i')
  probe.style.color = getComputedStyle(panel).getPropertyValue(variable)
  panel.append(probe)
  const color = getComputedStyle(probe).color.match(/\\d+/g).map(Number)
  probe.remove()
  const canvas = panel.querySelector('canvas')
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let count = 0
  for (let at = 0; at < data.length; at += 4) {
    if (color.every((part, index) => Math.abs(data[at + index] - part) < 12) && data[at + 3] > 200) count += 1
  }
  return count
}"""


def message(**values: Any) -> dict[str, Any]:
    """A run of a hundred steps whose held-out loss is lowest at step 40."""
    points = [[step, 1 / (1 + step / 20)] for step in range(1, 101)]
    held_out = [[step, 0.5 + abs(step - 40) / 200] for step in range(0, 101, 10)]
    run = {"id": "held out", "run": "held-out", "step": 100, "steps": 200, "points": points, "checkpoints": [40, 100]}
    found = first_message(**run) | {"validation": held_out, "best_step": 40} | values
    return found | {"from": {**found["from"], "validation": 0}}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_held_out_loss_is_a_second_curve(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    load(page, short_workflow("held-out", 200, 50))
    page.evaluate(SHOW, message(id="without", validation=[], best_step=None))
    wait_until(lambda: read_panel(page)["step"] == 100, 20)
    page.wait_for_timeout(300)
    assert page.locator(".edit-trainer-heldOut").is_hidden()
    assert not page.evaluate(PIXELS, "--et-second")
    page.evaluate(SHOW, message())
    expect(page.locator(".edit-trainer-heldOut dd")).to_have_text("0.8000 (lowest 0.5000 at step 40)")
    expect(page.locator(".edit-trainer-message").first).to_contain_text(
        "lowest at step 40 (0.5000) and has risen to 0.8000"
    )
    expect(page.locator(".edit-trainer-checkpoints option").nth(1)).to_have_text("40 · lowest")
    page.wait_for_timeout(300)
    assert page.evaluate(PIXELS, "--et-second") > 100
    chart = page.locator(".edit-trainer-chart-canvas")
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".edit-trainer-chart output")).to_contain_text("held-out loss 0.8000")
    screenshot(page, f"held out {renderer}")
    assert not log.problems


def test_a_saved_run_shows_its_held_out_loss(page: Page, server: Server) -> None:
    settings = {"validation_rows": 8.0, "validate_every": 2}
    graph = training(run_name="measured", params={"steps": 4, "sample_every": 4}, settings=settings)
    assert server.run(graph).status == "execution_success"
    saved = server.get("/edit_trainer/archive/measured")
    assert [step for step, _ in saved["validation"]] == [0, 2, 4]
    choose_renderer(page, "classic")
    load(page, short_workflow("measured", 4, 4))
    best = min(loss for _, loss in saved["validation"])
    expect(page.locator(".edit-trainer-heldOut dd")).to_contain_text(f"at step {saved['best_step']})")
    assert f"{best:.3f}"[:4] in page.locator(".edit-trainer-heldOut dd").inner_text()


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_it_is_readable(page: Page, server: Server, palette: str) -> None:
    choose_renderer(page, "classic")
    choose_palette(page, palette)
    load(page, short_workflow("held-out", 200, 50))
    page.evaluate(SHOW, message(id=palette))
    expect(page.locator(".edit-trainer-heldOut dd")).to_be_visible()
    page.wait_for_timeout(500)
    check_contrast(page, 10)
    screenshot(page, f"held out {palette}", "body")
