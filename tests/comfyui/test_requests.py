"""A request's JSON goes through ComfyUI and back, and the command line takes what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from ..hosted_request import HOSTED, write_files
from .graphs import node, training
from .server import PACK, Server
from .test_faults import request_graph, request_json


def test_a_pasted_request_trains_what_it_says(server: Server) -> None:
    result = server.run(request_graph(json.dumps(request_json(base_model="tiny/qwen-image-edit")), "pasted"))
    assert result.status == "execution_success", result.details
    written = json.loads((server.output / "edit_trainer" / "pasted" / "request.json").read_text(encoding="utf-8"))
    asked = request_json(base_model="tiny/qwen-image-edit")
    assert written["base_model"] == "tiny/qwen-image-edit"
    assert written["training_params"] | asked["training_params"] == written["training_params"]


def test_the_published_request_for_several_images_runs_as_it_is(server: Server) -> None:
    write_files(server.base / "input")
    (server.base / "input" / "hosted.json").write_text(json.dumps(HOSTED), encoding="utf-8")
    stopped = []

    def stop_after_the_first_step(kind: str, data: dict) -> None:
        if kind == "edit_trainer.run" and data["points"] and not stopped:
            stopped.append(server.post("/edit_trainer/runs/train/stop", {}))

    result = server.run(request_graph("hosted.json", "hosted"), stop_after_the_first_step)
    assert result.status == "execution_success", result.details
    assert list((server.output / "loras").glob("hosted-*.safetensors"))
    folder = server.output / "edit_trainer" / "hosted"
    written = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    assert written["script_type"] == HOSTED["script_type"]
    assert written["training_params"] == HOSTED["training_params"]
    assert Image.open(folder / "samples" / "control-00-2.png").size == (64, 64)
    assert not (folder / "samples" / "control-01-2.png").exists()


def test_a_changed_request_file_is_read_again(server: Server) -> None:
    file = server.base / "input" / "request.json"
    for steps in (1, 2):
        request = request_json(resource=str(PACK / "example_workflows" / "edit_trainer_example.parquet"))
        request["training_params"]["steps"] = steps
        file.write_text(json.dumps(request), encoding="utf-8")
        result = server.run(request_graph("request.json", "from-file"))
        assert result.status == "execution_success", result.details
        assert result.text("train").startswith(f"{steps} steps done")


def test_a_saved_request_runs_unchanged_on_the_command_line(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(server.base / "input" / "blue.png")
    prompt = training(params={"steps": 2, "sample_every": 2}) | {"image": node("LoadImage", image="blue.png")}
    prompt["sample"]["inputs"]["control_image"] = ["image", 0]
    links = {"dataset": ["dataset", 0], "params": ["params", 0], "model": ["model", 0], "samples": ["sample", 0]}
    prompt["save"] = node("EditTrainerSaveRequest", filename_prefix="requests/mine", **links)
    prompt["shown"] = node("PreviewAny", source=["save", 0])
    for unused in ("train", "settings"):
        del prompt[unused]
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    file = server.output / "requests" / "mine_00001_.json"
    assert result.text("shown") == file.read_text(encoding="utf-8").strip()
    control = Path(json.loads(file.read_text(encoding="utf-8"))["training_params"]["samples"][0]["ctrl_img_url"])
    assert control.parent == file.parent, "not in ComfyUI's temporary folder"
    command = [
        sys.executable,
        "-m",
        "trainer",
        "train",
        str(file),
        "--out",
        str(tmp_path / "run"),
        "--sample-steps",
        "1",
    ]
    subprocess.run(command, cwd=PACK, check=True, timeout=600)
    assert list((tmp_path / "run").glob("*.safetensors"))


def test_a_request_is_not_saved_outside_of_the_output_folder(server: Server) -> None:
    prompt = training()
    links = {"dataset": ["dataset", 0], "params": ["params", 0], "model": ["model", 0]}
    prompt["save"] = node("EditTrainerSaveRequest", filename_prefix="../../escaped", **links)
    del prompt["train"]
    assert server.run(prompt).status == "execution_error"
    assert not list(server.base.parent.glob("escaped*"))


def test_the_page_can_ask_for_columns(server: Server) -> None:
    answer = server.get("/edit_trainer/columns", resource="edit_trainer_example.parquet")
    assert list(answer["columns"]) == ["control", "caption", "target"]
    assert answer["guess"]["image_column"] == "target"
    assert "not found" in server.get("/edit_trainer/columns", resource="nowhere.parquet")["error"]
