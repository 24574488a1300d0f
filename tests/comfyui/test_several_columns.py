"""Graphs with several control images, for a made-up model that takes three."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..several_controls import several_request, write_several
from .graphs import edited, node, training
from .server import Server
from .test_faults import refused, request_graph
from .test_training import ok

COLUMNS = {
    "resource": "several.parquet",
    "caption_column": "words",
    "control_image_column": "first",
    "control_image_column_2": "second",
    "image_column": "after",
}


@pytest.fixture(autouse=True)
def known(server: Server) -> Iterator[None]:
    """The model, offered by the nodes, and a dataset for it in the input folder."""
    write_several(server.base / "input" / "several.parquet")
    ok(server.run({"known": node("OracleSeveralFamily", known=True)}))
    yield
    ok(server.run({"known": node("OracleSeveralFamily", known=False)}))


def several(server: Server, run_name: str, **params: Any) -> dict[str, Any]:
    """A training on two columns, whose sample has a control image of each of two inputs."""
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(server.base / "input" / f"{color}.png")
    prompt = training("tiny/several", run_name, dataset=COLUMNS, params=params, settings={"conditioning": "auto"})
    prompt |= {color: node("LoadImage", image=f"{color}.png") for color in ("red", "blue")}
    prompt["sample"]["inputs"] |= {"control_image": ["red", 0], "control_image_3": ["blue", 0]}
    return prompt


def written(server: Server, run_name: str) -> dict[str, Any]:
    return json.loads((server.output / "edit_trainer" / run_name / "request.json").read_text(encoding="utf-8"))


def test_a_graph_of_two_columns_trains_previews_and_edits(server: Server) -> None:
    prompt = edited(several(server, "several", cache_text_embeddings=True))
    prompt["edit"]["inputs"] |= {"image": ["red", 0], "image_3": ["blue", 0]}
    prompt["grid"] = node("SaveImage", images=["preview", 0], filename_prefix="several-grid")
    prompt["rows"] = node("SaveImage", images=["dataset", 1], filename_prefix="several-rows")
    result = ok(server.run(prompt))
    request = written(server, "several")
    assert request["script_type"] == "multi_image_editing"
    assert request["training_params"]["control_image_columns"] == ["first", "second"]
    assert "cache_text_embeddings" not in request["training_params"]
    settings = server.output / "edit_trainer" / "several" / "settings.json"
    assert json.loads(settings.read_text(encoding="utf-8"))["cache_text_embeddings"] is True
    assert Image.open(server.output / "several-grid_00001_.png").size == (4 * 64, 64), "two controls, steps 0 and 4"
    assert Image.open(server.output / "several-rows_00001_.png").size == (3 * 64, 64), "padded to the longest row"
    (entry, *_) = [sample for event in result.events() for sample in event["samples"]]
    assert [control["filename"] for control in entry["controls"]] == ["control-00.png", "control-00-2.png"]
    kept = server.output / "edit_trainer" / "several" / "samples" / "control-00-2.png"
    assert Image.open(kept).getpixel((5, 5)) == (0, 0, 255)
    details = server.get("/edit_trainer/archive/several")
    assert len(details["samples"][0]["controls"]) == 2


def test_one_column_makes_a_request_for_one_control_image(server: Server) -> None:
    prompt = several(server, "one-column", steps=1)
    prompt["dataset"]["inputs"]["control_image_column_2"] = ""
    refused(server.run(prompt), "train", "a sample has 2 control images, and the dataset one column of them")
    del prompt["sample"]["inputs"]["control_image_3"]
    ok(server.run(prompt))
    assert written(server, "one-column")["script_type"] == "image_editing"


def test_a_saved_request_trains_through_the_request_node(server: Server) -> None:
    prompt = several(server, "unused")
    links = {"dataset": ["dataset", 0], "params": ["params", 0], "model": ["model", 0], "samples": ["sample", 0]}
    prompt["save"] = node("EditTrainerSaveRequest", filename_prefix="requests/several", **links)
    del prompt["train"], prompt["settings"]
    ok(server.run(prompt))
    text = (server.output / "requests" / "several_00001_.json").read_text(encoding="utf-8")
    saved = json.loads(text)
    assert saved["script_type"] == "multi_image_editing"
    urls = saved["training_params"]["samples"][0]["ctrl_img_url"]
    assert [url.rpartition("/")[2] for url in urls] == [
        "several_00001_control-00.png",
        "several_00001_control-00-2.png",
    ]
    ok(server.run(request_graph(text, "several-by-request")))
    assert written(server, "several-by-request")["training_params"] == saved["training_params"]


def test_models_of_one_control_refuse_two_columns_by_name(server: Server) -> None:
    prompt = several(server, "refused")
    prompt["model"]["inputs"]["base_model"] = "tiny/flux-kontext"
    refused(server.run(prompt), "train", "tiny/flux-kontext takes one control image, and 2 are named")


def test_a_row_without_a_control_needs_leave(server: Server) -> None:
    write_several(server.base / "input" / "several.parquet", [(False, False), (True, True)])
    prompt = {"dataset": several(server, "unused")["dataset"]}
    prompt["report"] = node("PreviewAny", source=["dataset", 2])
    refused(server.run(prompt), "dataset", "row 0", "the row has no control image")
    prompt["dataset"]["inputs"]["allow_no_control"] = True
    assert "2 rows, all usable" in ok(server.run(prompt)).text("report")


def test_a_request_of_a_row_without_a_control_needs_leave_too(server: Server) -> None:
    write_several(server.base / "input" / "several.parquet", [(False, False), (True, True)])
    request = several_request(Path("several.parquet"))
    prompt = {"request": node("EditTrainerLoadRequest", request=json.dumps(request))}
    prompt["shown"] = node("PreviewAny", source=["request", 3])
    refused(server.run(prompt), "request", "row 0", "the row has no control image")
    prompt["request"]["inputs"]["allow_no_control"] = True
    assert ok(server.run(prompt)).text("shown") == "tiny/several"


def test_notes_know_every_column(server: Server) -> None:
    notes = server.get("/edit_trainer/dataset_notes", **COLUMNS | {"control_image_column_3": "third"})["notes"]
    assert [(note["code"], note["values"]["field"]) for note in notes] == [("columnMissing", "control_image_column_3")]
    twice = server.get("/edit_trainer/dataset_notes", **COLUMNS | {"control_image_column_2": "first"})["notes"]
    assert "is also the control_image_column" in twice[0]["text"]
    assert (
        server.get("/edit_trainer/dataset_notes", **COLUMNS, control_image_column_3="", mask_column="")["notes"] == []
    )
