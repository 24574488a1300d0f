"""The runs tab in the real page: listing, opening, comparing, resuming and pushing runs, and dragging out a LoRA."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from ..comfyui.graphs import training
from ..comfyui.server import Server
from ..hub_server import OWNER, HubServer
from .helpers import PageLog, choose_renderer, screenshot, wait_until
from .test_graphs import check_undo, start, types

RUNS = ("tab-one", "tab-two")
NODES = """() => app.graph.nodes.map((node) => ({
  type: node.type,
  pos: [...node.pos],
  values: Object.fromEntries((node.widgets ?? []).filter(({ name }) => !name.startsWith('$$'))
    .map((widget) => [widget.name, widget.value])),
}))"""
"""All nodes with their widgets, except those that the page adds itself, such as a preview."""


@pytest.fixture(scope="module")
def runs(server: Server) -> tuple[str, ...]:
    """Two finished runs of different lengths."""
    for name, steps in zip(RUNS, (4, 6), strict=True):
        result = server.run(training(run_name=name, params={"steps": steps, "sample_every": 2}))
        assert result.status == "execution_success", result.details
    return RUNS


def open_tab(page: Page, renderer: str) -> None:
    choose_renderer(page, renderer)
    page.evaluate("() => app.graph.clear()")
    page.get_by_role("button", name="Training runs").first.click()


def row(page: Page, name: str) -> Locator:
    return page.locator(".edit-trainer-run").filter(has=page.locator("strong", has_text=name))


def nodes(page: Page, kind: str) -> list[dict[str, Any]]:
    return [node for node in page.evaluate(NODES) if node["type"] == kind]


def node_values(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """Types and widget values of all nodes. Positions are left out: the page may move nodes when it loads a graph."""
    return [(node["type"], node["values"]) for node in page.evaluate(NODES)]


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_runs_are_listed_opened_and_compared(page: Page, server: Server, runs, renderer: str) -> None:
    log = PageLog(page)
    open_tab(page, renderer)
    for name, steps in zip(runs, (4, 6), strict=True):
        expect(row(page, name)).to_contain_text(f"{steps} / {steps}")
        expect(row(page, name)).to_contain_text("tiny/flux-kontext")
        thumbnail = row(page, name).locator("img")
        wait_until(lambda shown=thumbnail: shown.evaluate("(image) => image.naturalWidth") > 0, 30)

    row(page, runs[0]).get_by_role("button", name="Open").click()
    dialog = page.locator("dialog.edit-trainer-compare")
    expect(dialog.locator(".edit-trainer-panel")).to_have_attribute("data-state", "finished")
    expect(dialog.locator(".edit-trainer-small")).to_have_count(3)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    compare = page.get_by_role("button", name="Compare two")
    expect(compare).to_be_disabled()
    for name in runs:
        row(page, name).get_by_role("checkbox").check()
    compare.click()
    expect(dialog.locator("h3")).to_have_text(list(runs))
    expect(dialog.locator(".edit-trainer-parameters td")).to_have_text(["steps", "4", "6"])
    expect(dialog.locator("canvas")).to_have_count(1)
    assert [dialog.locator("section").nth(side).locator(".edit-trainer-small").count() for side in (0, 1)] == [3, 4]
    page.keyboard.press("Escape")
    row(page, runs[0]).get_by_role("checkbox").uncheck()
    expect(compare).to_be_disabled()
    assert not log.problems
    assert not log.other_hosts


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_run_is_resumed_from_the_list(page: Page, server: Server, runs, renderer: str) -> None:
    log = PageLog(page)
    open_tab(page, renderer)
    reached = server.get(f"/edit_trainer/archive/{runs[0]}")["step"]
    row(page, runs[0]).get_by_role("button", name="Resume").click()
    question = page.locator("dialog.edit-trainer-ask")
    expect(question.locator("input")).to_have_value(str(2 * reached))
    question.locator("input").fill(str(reached + 2))
    screenshot(page, f"more-steps-{renderer}", "dialog.edit-trainer-ask")
    question.get_by_role("button", name="Resume").click()
    wait_until(lambda: nodes(page, "EditTrainerPreviewSamples"), 30)
    (train,) = nodes(page, "EditTrainerTrain")
    assert train["values"]["run_name"] == runs[0]
    wait_until(lambda: page.locator(".edit-trainer-panel").get_attribute("data-state") == "finished", 30)
    wait_until(lambda: [node["values"]["steps"] for node in nodes(page, "EditTrainerParams")] == [reached + 2], 30)
    page.evaluate("() => app.queuePrompt(0, 1)")
    resumed = wait_until(lambda: (run := server.get(f"/edit_trainer/archive/{runs[0]}"))["step"] > reached and run)
    wait_until(lambda: not server.get("/queue")["queue_running"], 120)
    expect(page.locator(".edit-trainer-panel .edit-trainer-message").first).to_contain_text(f"from step {reached}")
    assert [step for step, _ in resumed["points"]][: reached + 1] == list(range(1, reached + 2)), "not started again"
    assert [line["run"] for line in server.get("/edit_trainer/archive") if line["run"].startswith(runs[0])] == [runs[0]]

    page.evaluate("() => { app.graph.nodes[0].title = 'renamed by hand'; app.queuePrompt(0, 1) }")
    wait_until(lambda: (queue := server.get("/queue")) and not any(queue.values()), 120)
    queued = node_values(page)
    steps = next(values["steps"] for kind, values in queued if kind == "EditTrainerParams")
    page.evaluate("() => app.graph.clear()")
    row(page, runs[0]).get_by_role("button", name="Resume").click()
    question.locator("input").fill(str(steps + 1))
    question.get_by_role("button", name="Resume").click()
    for kind, values in queued:
        if kind == "EditTrainerParams":
            values["steps"] = steps + 1
    assert wait_until(lambda: node_values(page) == queued, 30), "the workflow that it was queued from, with more steps"
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_its_lora_is_dragged_into_the_graph(page: Page, server: Server, runs, renderer: str) -> None:
    open_tab(page, renderer)
    lora = server.get(f"/edit_trainer/archive/{runs[1]}")["lora"]
    row(page, runs[1]).get_by_role("button", name="LoRA").drag_to(
        page.locator("#graph-canvas"), target_position={"x": 1100, "y": 500}, force=True
    )
    (loader,) = wait_until(lambda: nodes(page, "LoraLoaderModelOnly"), 30)
    assert loader["values"]["lora_name"] == lora
    x, y = page.evaluate("([x, y]) => app.canvas.convertOffsetToCanvas([x, y])", loader["pos"])
    assert abs(x - 1100) < 60 and abs(y - 500) < 60, "where it was dropped"


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_run_is_deleted_when_the_question_is_answered(page: Page, server: Server, renderer: str) -> None:
    name = f"unwanted-{renderer}"
    assert server.run(training(run_name=name, params={"steps": 2})).status == "execution_success"
    log = PageLog(page)
    open_tab(page, renderer)
    question = page.locator("dialog.edit-trainer-ask")
    row(page, name).get_by_role("button", name="Delete").click()
    screenshot(page, f"delete-{renderer}", "body")
    question.get_by_role("button", name="Cancel").click()
    expect(row(page, name)).to_be_visible()
    row(page, name).get_by_role("button", name="Delete").click()
    question.get_by_role("button", name="Delete").click()
    expect(row(page, name)).to_have_count(0)
    assert not (server.output / "edit_trainer" / name).exists()
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_a_run_is_pushed_when_its_user_has_said_where(page: Page, runs, hub: HubServer, renderer: str) -> None:
    log = PageLog(page)
    open_tab(page, renderer)
    files = ["README.md", "tab-two-000006.safetensors", "request.json", "settings.json", "samples/step-000006-00.png"]
    repo = f"{OWNER}/tab-two-{renderer}"
    dialog = page.locator("dialog.edit-trainer-ask")
    push = row(page, runs[1]).get_by_role("button", name="Push to hub")
    before = len(hub.requests)
    push.click()
    expect(dialog.locator("li")).to_have_text(files)
    expect(dialog.get_by_role("checkbox")).to_be_checked()
    screenshot(page, f"push-{renderer}", "body")
    dialog.get_by_role("button", name="Push to hub").click()
    expect(dialog).to_be_visible()  # No repository is named yet.
    dialog.get_by_role("textbox").fill(repo)
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert len(hub.requests) == before, "nothing is sent before the question is answered"

    push.click()
    dialog.get_by_role("textbox").fill(repo)
    dialog.get_by_role("button", name="Push to hub").click()
    expect(page.get_by_text(f"{hub.url}/{repo}").last).to_be_visible()  # also read aloud by newer pages
    screenshot(page, f"pushed-{renderer}", "body")
    assert hub.repos[repo].private
    assert sorted(hub.repos[repo].files) == sorted([*files, ".gitattributes"])
    assert not log.problems
    assert not log.other_hosts, "the page itself contacts no hub"

    push.click()
    dialog.get_by_role("textbox").fill("stranger/frames")
    dialog.get_by_role("button", name="Push to hub").click()
    expect(page.get_by_text("may not write to stranger/frames").last).to_be_visible()
    assert "stranger/frames" not in hub.repos


OBJECT_INFO = re.compile(r"/object_info$")
ADD = "() => { app.canvas.graph.add(LiteGraph.createNode('EmptyLatentImage')) }"


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_undo_removes_the_lora_alone(page: Page, server: Server, runs, renderer: str) -> None:
    log = start(page, renderer)
    page.get_by_role("button", name="Training runs").first.click()
    before = types(page)
    lora = row(page, runs[1]).get_by_role("button", name="LoRA")
    lora.click()
    wait_until(lambda: nodes(page, "LoraLoaderModelOnly"), 30)
    check_undo(page, before)

    held: list[Route] = []
    page.route(OBJECT_INFO, lambda route: held.append(route))
    lora.click()
    wait_until(lambda: page.wait_for_timeout(100) or held, 30)
    page.evaluate(ADD)  # while the menus are read
    before = types(page)
    page.unroute(OBJECT_INFO)  # which lets it through
    wait_until(lambda: page.wait_for_timeout(100) or len(nodes(page, "LoraLoaderModelOnly")) == 2, 30)
    check_undo(page, before)
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_what_the_list_adds_is_undone_in_one_step_each(page: Page, server: Server, runs, renderer: str) -> None:
    log = start(page, renderer)
    page.get_by_role("button", name="Training runs").first.click()
    before = types(page)
    row(page, runs[1]).get_by_role("button", name="Open").click()
    dialog = page.locator("dialog.edit-trainer-compare")
    dialog.get_by_role("button", name="Use LoRA").click()
    wait_until(lambda: nodes(page, "LoraLoaderModelOnly"), 60)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    check_undo(page, before)

    before = types(page)
    row(page, runs[1]).get_by_role("button", name="Resume").click()
    page.locator("dialog.edit-trainer-ask").get_by_role("button", name="Resume").click()
    wait_until(lambda: nodes(page, "EditTrainerPreviewSamples"), 30)
    check_undo(page, before)
    assert not log.problems


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_keys_stay_in_a_dialog_that_has_not_the_focus(page: Page, server: Server, runs, renderer: str) -> None:
    log = start(page, renderer)
    before = types(page)
    page.evaluate("() => app.canvas.graph.nodes.forEach((node) => app.canvas.select(node))")
    page.get_by_role("button", name="Training runs").first.click()
    row(page, runs[1]).get_by_role("button", name="Open").click()
    dialog = page.locator("dialog.edit-trainer-compare")
    expect(dialog).to_have_count(1)
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Delete")
    page.wait_for_timeout(500)
    assert types(page) == before
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.keyboard.press("Delete")
    wait_until(lambda: not types(page), 20)
    assert not log.problems
