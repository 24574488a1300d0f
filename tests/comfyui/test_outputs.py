"""TensorBoard, Weights & Biases and the Hugging Face hub from ComfyUI: only a person starts what is sent."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..hub_server import OWNER, HubServer, hub_server
from .graphs import training
from .server import Server, find_python
from .test_page_routes import ask

NAMES = ["README.md", "logged-000004.safetensors", "request.json", "settings.json", "samples/step-000004-00.png"]
REPO = f"{OWNER}/logged"
VARIABLE = "EDIT_TRAINER_LOG_WITH"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Server]:
    """A server with a login at the hub, whose Python has neither TensorBoard nor wandb."""
    missing = tmp_path_factory.mktemp("missing")
    for package in ("tensorboard", "wandb"):
        (missing / f"{package}.py").write_text("raise ImportError")
    variables = hub.environment() | {VARIABLE: "", "PYTHONPATH": str(missing)}
    server = Server(comfyui, tmp_path_factory.mktemp("comfyui"), variables=variables)
    yield server
    server.close()


@pytest.fixture(scope="module")
def run_name(server: Server) -> str:
    """A finished run."""
    result = server.run(training(run_name="logged"))
    assert result.status == "execution_success", result.details
    return "logged"


def test_a_push_sends_what_its_preview_lists(server: Server, run_name: str, hub: HubServer) -> None:
    contents = server.get(f"/edit_trainer/push/{run_name}")
    assert contents == {"step": 4, "files": NAMES}
    assert not hub.requests, "a preview sends nothing"
    for name in ("edit_trainer_cache", "..", "nowhere", "%2e%2e%2floras"):
        assert ask(server, f"/edit_trainer/push/{name}?repo={REPO}", b"")[0] in (400, 404), name
    status, body = ask(server, f"/edit_trainer/push/{run_name}?repo=", b"")
    assert status == 400 and "give OWNER/NAME" in json.loads(body)["error"]
    assert not hub.repos

    status, body = ask(server, f"/edit_trainer/push/{run_name}?repo={quote(REPO, safe='')}", b"")
    assert (status, json.loads(body)) == (200, {"url": f"{hub.url}/{REPO}"})
    assert sorted(hub.repos[REPO].files) == sorted([*NAMES, ".gitattributes"])
    assert hub.repos[REPO].private, "unless the answer says otherwise"
    assert ask(server, f"/edit_trainer/push/{run_name}?repo={REPO}-2&private=0", b"")[0] == 200
    assert not hub.repos[f"{REPO}-2"].private
    for content in (*hub.repos[REPO].files.values(), *hub.repos[f"{REPO}-2"].files.values()):
        assert str(server.base).encode() not in content

    hub.broken = True
    status, body = ask(server, f"/edit_trainer/push/{run_name}?repo={REPO}", b"")
    hub.broken = False
    assert status == 500 and "status 503: down for maintenance" in json.loads(body)["error"]


def test_a_missing_tensorboard_is_the_nodes_message(server: Server) -> None:
    result = server.run(training(run_name="no-board", settings={"tensorboard": True}))
    assert result.status == "execution_error"
    message = result.details["exception_message"]
    assert message.startswith("The setting tensorboard needs the package tensorboard, which is not installed.")
    assert '`python -m pip install "tensorboard>=2.18"`' in message
    assert not (server.output / "edit_trainer" / "no-board").exists()


def test_no_workflow_starts_wandb(server: Server, hub: HubServer) -> None:
    """With an input that asks for it: wandb is not installed there, so a run that asked for it would fail to start."""
    assert "wandb" not in json.dumps(server.get("/object_info")["EditTrainerSettings"]).lower()
    asked = {"log_with": "wandb", "report_to": "wandb", VARIABLE: "wandb"}
    for graph in (
        training(run_name="sent", settings=asked, params={"steps": 1}),
        training(run_name="sent", params={"steps": 1}, **asked),
    ):
        result = server.run(graph)
        assert result.status == "execution_success" or "wandb" not in str(result.details.get("exception_message", ""))
    assert not list(server.output.rglob("wandb"))


@pytest.fixture(scope="module")
def logging_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Server]:
    """A server of somebody who asks for both logs, and has no login at the hub."""
    imports = [find_python(comfyui), "-c", "import tensorboard, wandb"]
    if subprocess.run(imports, capture_output=True).returncode:
        pytest.skip("ComfyUI's Python has no tensorboard or no wandb")
    base = tmp_path_factory.mktemp("comfyui")
    variables = hub.environment(token=None) | {VARIABLE: "all", "WANDB_MODE": "offline", "HF_HOME": str(base / "hf")}
    assert "HF_TOKEN" not in os.environ
    server = Server(comfyui, base, variables=variables)
    yield server
    server.close()


def test_whoever_starts_comfyui_asks_for_logs(logging_server: Server, hub: HubServer) -> None:
    server = logging_server
    for steps in (4, 6):
        result = server.run(training(run_name="logged", params={"steps": steps}))
        assert result.status == "execution_success", result.details
    run = server.output / "edit_trainer" / "logged"
    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    assert [event.step for event in reader.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in reader.Images("samples/00: add a red frame")] == [0, 4, 6]
    assert len({log.name for log in (run / "wandb").glob("offline-run-*/*.wandb")}) == 1

    before = len(hub.requests)
    status, body = ask(server, f"/edit_trainer/push/logged?repo={REPO}-3", b"")
    assert status == 400 and "There is no login for the Hugging Face hub" in json.loads(body)["error"]
    assert len(hub.requests) == before
