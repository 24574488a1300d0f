"""What is wrong with a graph reaches the person as one clear error on the right node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .graphs import Prompt, node, training
from .server import Result, Server


def request_graph(request: str, run_name: str = "by-request") -> Prompt:
    """A request node and what hangs on it."""
    return {
        "request": node("EditTrainerLoadRequest", request=request),
        "model": node("EditTrainerBaseModel", base_model=["request", 3], transformer="auto"),
        "train": node(
            "EditTrainerTrain",
            model=["model", 0],
            dataset=["request", 0],
            params=["request", 1],
            run_name=run_name,
            seed=42,
            resume=True,
            samples=["request", 2],
        ),
    }


def request_json(**changes: Any) -> dict[str, Any]:
    """A whole request on the example."""
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    params = {"steps": 2, "sample_every": 2, "lora_rank": 2, "sample_width": 64, "sample_height": 64}
    params |= {"samples": [{"ctrl_img_url": "", "prompt": "add a red frame"}]}
    return {
        "resource": "main/edit_trainer_example.parquet",
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": columns | params,
    } | changes


def refused(result: Result, at: str, *said: str) -> None:
    assert result.status == "execution_error", result.details
    assert result.details["node_id"] == at
    assert result.details["exception_type"] in ("ValueError", "RuntimeError")
    for part in said:
        assert part in result.details["exception_message"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"resource": "nowhere.parquet"}, ["nowhere.parquet", "is not found", "tried"]),
        ({"resource": ""}, ["resource", "empty"]),
        ({"control_image_column": "contrl"}, ["control_image_column", "contrl", "did you mean", '"target"']),
        ({"caption_column": ""}, ["caption_column", "is required"]),
    ],
)
def test_parquet_and_columns_are_checked_before_anything_runs(
    server: Server, change: dict[str, str], said: list[str]
) -> None:
    result = server.run(training(dataset=change))
    assert result.status == "refused"
    assert list(result.details["node_errors"]) == ["dataset"]
    for part in said:
        assert part in result.details["node_errors"]["dataset"]["errors"][0]["details"]


def test_a_folder_of_images_that_is_not_there(server: Server) -> None:
    change = {"images_root": "nowhere"}
    refused(server.run(training(dataset=change)), "dataset", "images_root", "nowhere", "not a folder")


def test_bad_rows_are_named_and_can_be_skipped(server: Server) -> None:
    columns = {"a": ["no.png", "no.png"], "b": ["x", "y"], "c": ["no.png", "no.png"]}
    pq.write_table(pa.table(columns), server.base / "input" / "bad.parquet")
    change = {"resource": "bad.parquet", "caption_column": "b", "control_image_column": "a", "image_column": "c"}
    refused(server.run(training(dataset=change)), "dataset", "row 0", '"a"', "no such file")

    example = pq.read_table(Path(__file__).parents[2] / "example_workflows" / "edit_trainer_example.parquet")
    rows = example.slice(0, 3).to_pylist()
    rows[1]["caption"] = None
    pq.write_table(pa.Table.from_pylist(rows, example.schema), server.base / "input" / "one_bad.parquet")
    refused(server.run(training(dataset={"resource": "one_bad.parquet"})), "dataset", "row 1", '"caption"', "skip")
    skipped = server.run(training(run_name="skips", dataset={"resource": "one_bad.parquet", "bad_rows": "skip"}))
    assert skipped.status == "execution_success"


def test_a_dataset_says_what_is_wrong_in_its_node(server: Server) -> None:
    example = pq.read_table(Path(__file__).parents[2] / "example_workflows" / "edit_trainer_example.parquet")
    rows = example.slice(0, 3).to_pylist()
    rows[1]["caption"], rows[2]["target"] = None, rows[2]["control"]
    pq.write_table(pa.Table.from_pylist(rows, example.schema), server.base / "input" / "warned.parquet")
    prompt = training(dataset={"resource": "warned.parquet"})
    prompt = {"dataset": prompt["dataset"], "shown": node("PreviewImage", images=["dataset", 1])}
    events = server.run(prompt).messages
    (stopped,) = [data for _, kind, data in events if kind == "edit_trainer.notes"]
    fault = {"row": 1, "column": "caption", "code": "whyNull", "values": {}}
    values = {"n": 1, "rows": 3, "faults": [fault]}
    assert stopped == {"node_id": "dataset", "notes": [{"level": "error", "code": "badRows", "values": values}]}
    prompt["dataset"]["inputs"]["bad_rows"] = "skip"
    executed = [data for _, kind, data in server.run(prompt).messages if kind == "executed"]
    notes = next(data["output"]["edit_trainer_notes"] for data in executed if data["node"] == "dataset")
    assert [(note["level"], note["code"]) for note in notes] == [("warning", "same"), ("warning", "rowsLeftOut")]


def test_the_page_is_told_nothing_of_files_outside(server: Server) -> None:
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    there = server.base / "outside.parquet"
    pq.write_table(pa.table({"caption": ["x"], "control": ["a.png"], "target": ["b.png"]}), there)
    for path in (there, there.with_name("not there.parquet")):
        (note,) = server.get("/edit_trainer/dataset_notes", resource=str(path), **columns)["notes"]
        assert (note["level"], note["code"]) == ("warning", "parquetOutside")
    (note,) = server.get("/edit_trainer/dataset_notes", resource="none.parquet", **columns)["notes"]
    assert (note["level"], note["code"]) == ("error", "parquetMissing")


def test_a_parquet_leads_to_no_private_host(server: Server) -> None:
    address = f"http://localhost:{server.port}/system_stats"
    pq.write_table(
        pa.table({"caption": ["x"], "control": [address], "target": [address]}),
        server.base / "input" / "inside.parquet",
    )
    said = ["row 0", '"control"', "private network", "EDIT_TRAINER_ALLOW_PRIVATE_HOSTS=1"]
    refused(server.run(training(dataset={"resource": "inside.parquet"})), "dataset", *said)


WRONG_COLUMN = request_json()["training_params"] | {"image_column": "targt"}


@pytest.mark.parametrize(
    "request_text, said",
    [
        ("{not json", ["not valid JSON", "line 1"]),
        ("", ["request", "empty"]),
        ("nowhere.json", ["nowhere.json", "neither JSON nor a file"]),
        (json.dumps(request_json() | {"colour": 1}), ["colour", "unknown field"]),
        (json.dumps(request_json(base_model="gpt")), ["base_model", "gpt", "tiny/flux-kontext"]),
        (json.dumps(request_json(resource="main/none.parquet")), ["resource", "none.parquet", "not found"]),
        (json.dumps(request_json(training_params=WRONG_COLUMN)), ["image_column", "targt", "did you mean"]),
    ],
)
def test_request_faults_are_found_before_anything_runs(server: Server, request_text: str, said: list[str]) -> None:
    result = server.run(request_graph(request_text))
    assert result.status == "refused"
    assert list(result.details["node_errors"]) == ["request"]
    for part in said:
        assert part in result.details["node_errors"]["request"]["errors"][0]["details"]


@pytest.mark.parametrize("name", ["../out", "a/b", "a\\b", "", "con", "..", "C:x", "edit_trainer_cache"])
def test_a_run_name_cannot_leave_its_folder(server: Server, name: str) -> None:
    refused(server.run(training(run_name=name)), "train", "run_name")


def test_what_cannot_be_used_yet_says_so(server: Server) -> None:
    refused(server.run(training(settings={"conditioning": "comfyui"})), "train", "conditioning", "clip and vae")
    chained = training() | {"again": node("EditTrainerTrain", **training()["train"]["inputs"])}
    chained["again"]["inputs"] |= {"model": ["train", 0], "run_name": "again"}
    refused(server.run(chained), "again", "already trained")


def test_a_lora_of_another_model_is_refused(server: Server) -> None:
    prompt = training(run_name="kontext-lora") | {
        "qwen": node("EditTrainerBaseModel", base_model="tiny/qwen-image-edit", transformer="auto"),
        "edit": node(
            "EditTrainerEditImage",
            model=["qwen", 0],
            image=["dataset", 1],
            prompt="add a red frame",
            negative_prompt="",
            seed=1,
            steps=2,
            guidance=0.0,
            width=0,
            height=0,
            lora_strength=1.0,
            lora=["train", 1],
        ),
        "shown": node("PreviewImage", images=["edit", 0]),
    }
    refused(server.run(prompt), "edit", "made for another model")


def test_the_server_goes_on_after_all_that(server: Server) -> None:
    assert server.run(request_graph(json.dumps(request_json()))).status == "execution_success"
