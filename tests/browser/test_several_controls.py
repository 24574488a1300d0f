"""Several control images in the real page: the dataset node's columns, the samples of a run and the viewer."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ..comfyui.graphs import training
from ..comfyui.server import PACK, Server
from ..several_controls import write_several
from .helpers import PageLog, choose_renderer, load, screenshot, scroll_to, short_workflow, wait_until
from .test_dataset_menus import VALUES
from .test_graphs import DROP, start, types

RENDERERS = ["classic", "vue"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_dataset_node_shows_every_column_of_control_images(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    write_several(server.base / "input" / "several.parquet")
    workflow = short_workflow("several", 4, 4)
    dataset = next(node for node in workflow["nodes"] if node["type"] == "EditTrainerLoadDataset")
    dataset["widgets_values"][:4] = ["several.parquet", "words", "first", "after"]
    load(page, workflow)
    scroll_to(page, "EditTrainerLoadDataset")
    wait_until(lambda: page.get_by_text("3 rows, 4 columns").is_visible(), 30)
    values = page.evaluate(VALUES)
    assert [values[f"control_image_column_{number}"] for number in (2, 3)] == ["", ""]
    assert values["allow_no_control"] is False
    expect(page.locator(".edit-trainer-first img")).to_have_count(6)

    field = page.locator(".edit-trainer-choice input").nth(4)
    field.fill("second")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUES)["control_image_column_2"] == "second"
    expect(page.locator(".edit-trainer-first img")).to_have_count(9)
    wait_until(lambda: page.locator(".edit-trainer-first img[src]").count() == 8, 30)
    screenshot(page, f"several-dataset-{renderer}", "body")
    field.fill("none such")
    page.keyboard.press("Enter")
    expect(page.get_by_text("control_image_column_2: the file has no column “none such”")).to_be_visible()
    assert not log.problems


def test_a_dropped_parquet_with_two_control_columns_gets_a_model_that_takes_them(page: Page, server: Server) -> None:
    log = start(page, "classic")
    data = (PACK / "example_workflows" / "edit_trainer_two_images.parquet").read_bytes()
    page.evaluate(DROP, ["two.parquet", list(data)])
    wait_until(lambda: "EditTrainerPreviewSamples" in types(page), 30)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    nodes = {node["class_type"]: node["inputs"] for node in prompt.values()}
    columns = {name: column for name, column in nodes["EditTrainerLoadDataset"].items() if name.startswith("control")}
    assert list(columns.values()) == ["control", "control_2", ""]
    assert nodes["EditTrainerBaseModel"]["base_model"] == "tiny/qwen-image-edit-plus"
    assert not log.problems


@pytest.mark.parametrize("renderer", RENDERERS)
def test_samples_and_viewer_show_every_control(page: Page, server: Server, renderer: str) -> None:
    choose_renderer(page, renderer)
    log = PageLog(page)
    name = f"several-{renderer}"
    assert server.run(training(run_name=name)).status == "execution_success"
    samples = server.output / "edit_trainer" / name / "samples"
    Image.new("RGB", (64, 48), "blue").save(samples / "control-00-2.png")
    shutil.copy(samples / "step-000000-00.png", samples / "control-00-3.png")
    page.get_by_role("button", name="Training runs").first.click()
    run = page.locator(".edit-trainer-run").filter(has=page.locator("strong", has_text=name))
    run.get_by_role("button", name="Open").click()
    dialog = page.locator("dialog.edit-trainer-compare")
    controls = dialog.locator(".edit-trainer-control img")
    expect(controls).to_have_count(3)
    wait_until(lambda: controls.evaluate_all("(images) => images.every((image) => image.naturalWidth)"), 30)
    assert controls.nth(1).get_attribute("title") == "Control image 2"
    screenshot(page, f"several-panel-{renderer}", "dialog.edit-trainer-compare")

    dialog.locator(".edit-trainer-picture").click()
    viewer = page.locator("dialog.edit-trainer-viewer")
    before = viewer.locator(".edit-trainer-stage img").first
    assert "control-00.png" in before.get_attribute("src")
    viewer.get_by_role("button", name="Control image 2").click()
    assert "control-00-2.png" in before.get_attribute("src")
    expect(viewer.get_by_role("button", name="Control image 2")).to_have_attribute("aria-pressed", "true")
    wait_until(lambda: before.evaluate("(image) => image.naturalWidth"), 30)
    screenshot(page, f"several-viewer-{renderer}", "dialog.edit-trainer-viewer")
    assert not log.problems
