"""Datasets with several columns of control images: rows with gaps, reports, warnings and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from trainer.cli.main import main
from trainer.config.columns import Columns
from trainer.config.request import parse_request
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.digests import pictures_state
from trainer.data.load_request import load_request
from trainer.data.report import BadRows
from trainer.errors import BadInput
from trainer.events import drain

from ..several_controls import SEVERAL, registered
from .edits import number_of, png, write, write_files

COLUMNS = Columns("prompt", ("a", "b", "c"), "after")


def opened(path: Path, columns: Columns = COLUMNS, **options: object) -> EditDataset:
    return drain(open_dataset(path, columns, **options))


def three_columns(folder: Path) -> dict[str, list]:
    """Paths, bytes and structs; null and empty cells; row 4 has no control."""
    for number in range(5):
        for name in "abc":
            (folder / f"{name}{number}.png").write_bytes(png(number + 100 * "abc".index(name)))
    struct = [{"bytes": None, "path": f"c{number}.png"} for number in range(5)]
    struct[1], struct[3], struct[4] = None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}
    files = write_files(folder, 5)
    return {
        "prompt": files["prompt"],
        "a": ["a0.png", "a1.png", "", None, " "],
        "b": [png(100), None, png(102), png(103), b""],
        "c": pa.array(struct, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "after": files["after"],
    }


def controls(dataset: EditDataset) -> list[tuple[int, list[int], str]]:
    """Row, numbers of its control images, and their columns."""
    return [
        (row.row, [number_of(dataset.fetch(control)) for control in row.controls], "".join(row.control_columns))
        for row in dataset
    ]


GAPS_CLOSED = [(0, [0, 100, 200], "abc"), (1, [1], "a"), (2, [102, 202], "bc"), (3, [103], "b")]


def test_null_and_empty_cells_are_left_out_and_gaps_closed(tmp_path):
    path = write(tmp_path, three_columns(tmp_path))
    dataset = opened(path, bad_rows="skip")
    assert controls(dataset) == GAPS_CLOSED
    assert dataset.read_row(2) == dataset[2]
    assert [row.controls for row in opened(path, allow_no_control=True)][4] == ()
    with pytest.raises(BadRows, match='row 4, column "a": the row has no control image; set allow_no_control'):
        opened(path)


def test_one_column_still_needs_a_control_in_every_row(tmp_path):
    path = write(tmp_path, three_columns(tmp_path))
    with pytest.raises(BadRows) as caught:
        opened(path, Columns("prompt", ("b",), "after"))
    assert str(caught.value).count("\n  - ") == 2
    assert 'row 1, column "b": is null' in str(caught.value)
    assert 'row 4, column "b": is empty (0 bytes)' in str(caught.value)
    allowed = opened(path, Columns("prompt", ("b",), "after"), allow_no_control=True)
    assert [len(row.controls) for row in allowed] == [1, 0, 1, 1, 0]


def test_faults_name_the_column_they_are_in(tmp_path):
    columns = three_columns(tmp_path)
    columns["a"] = ["a0.png", "none.png", "../a2.png", "", ""]
    columns["b"] = [b"text", None, png(102), png(103), png(104)]
    with pytest.raises(BadRows) as caught:
        opened(write(tmp_path, columns))
    said = str(caught.value)
    for row, column in ((0, "b"), (1, "a"), (2, "a")):
        assert f'row {row}, column "{column}": ' in said
    assert said.count("\n  - ") == 3


def test_the_report_has_a_line_for_each_column(tmp_path):
    columns = three_columns(tmp_path)
    columns["b"][0] = png(100, (20, 10))
    report = opened(write(tmp_path, columns), bad_rows="skip").report
    lines = str(report).splitlines()
    assert '  control  "a": 8 x 6 pixels (none in 2 rows)' in lines
    assert '  control  "b": 8 x 6 to 20 x 10 pixels, median 8 x 6, aspect 1.33 to 2.00 (none in 1 row)' in lines
    found = json.loads(json.dumps(report.to_dict()))
    assert found["control_image_columns"] == ["a", "b", "c"]
    assert [sizes["largest"] for sizes in found["control_sizes"]] == [[8, 6], [20, 10], [8, 6]]
    assert found["without_control"] == [2, 1, 2]


def test_a_target_that_is_one_of_its_controls_is_said(tmp_path):
    columns = three_columns(tmp_path)
    columns["after"] = [png(1000), png(1001), png(102), png(1003), png(1004)]
    (warning,) = opened(write(tmp_path, columns), bad_rows="skip").report.warnings
    assert warning == "a control and the target are the same image in 1 of 5 rows"
    columns["after"][2] = png(202)
    (warning,) = opened(write(tmp_path, columns), bad_rows="skip").report.warnings
    assert warning == "a control and the target show the same in 1 of 4 sampled rows"


def test_a_control_that_looks_like_the_target_is_said(tmp_path):
    columns = three_columns(tmp_path)
    swapped = {"prompt": columns["prompt"], "before": columns["after"], "plain": columns["a"], "edited": columns["b"]}
    path = write(tmp_path, swapped)
    report = opened(path, Columns("prompt", ("plain", "edited"), "before"), bad_rows="skip").report
    assert any('control and target look swapped: "edited"' in warning for warning in report.warnings)


def test_fingerprints_know_every_control(tmp_path):
    columns = three_columns(tmp_path)
    path = write(tmp_path, columns)

    def fingerprint(*names: str) -> str:
        return opened(path, Columns("prompt", names, "after"), bad_rows="skip").fingerprint()

    usual = fingerprint("a", "b", "c")
    assert usual == fingerprint("a", "b", "c")
    assert len({usual, fingerprint("b", "a", "c"), fingerprint("a", "b"), fingerprint("c", "b")}) == 4
    state = pictures_state(path, COLUMNS, tmp_path)
    (tmp_path / "c2.png").write_bytes(png(999))
    assert fingerprint("a", "b", "c") != usual
    assert pictures_state(path, COLUMNS, tmp_path) != state


def test_columns_that_are_missing_or_named_twice(tmp_path):
    write(tmp_path, three_columns(tmp_path))
    params = {"caption_column": "prompt", "control_image_columns": ["a", "x", "a", "prompt"], "image_column": "after"}
    data = {"resource": "edits.parquet", "base_model": SEVERAL, "script_type": "multi_image_editing"}
    with registered(), pytest.raises(BadInput) as caught:
        load_request(data | {"training_params": params | {"steps": 0}}, tmp_path)
    said = str(caught.value)
    assert said.startswith("The request has 5 faults:")
    assert 'training_params.control_image_columns.1: "x" is not a column of edits.parquet' in said
    assert 'training_params.control_image_columns.2: "a" is also the control_image_columns.0' in said
    assert 'training_params.control_image_columns.3: "prompt" is also the caption_column' in said
    assert f"training_params.control_image_columns: {SEVERAL} takes at most 3 control images, and 4 are named" in said


@pytest.mark.parametrize("base_model", ["black-forest-labs/FLUX.1-Kontext-dev", "Qwen/Qwen-Image-Edit"])
def test_models_of_one_control_refuse_more_by_name(base_model):
    params = {"caption_column": "c", "control_image_columns": ["a"], "image_column": "o"}
    data = {"resource": "r", "base_model": base_model, "script_type": "multi_image_editing", "training_params": params}
    assert parse_request(data).training_params.columns.controls == ("a",)
    params |= {"control_image_columns": ["a", "b"], "samples": [{"ctrl_img_url": ["x", "y"], "prompt": "p"}]}
    with pytest.raises(BadInput) as caught:
        parse_request(data)
    said = f"{base_model} takes one control image, and 2 are named"
    assert f"training_params.control_image_columns: {said}" in str(caught.value)
    assert f"training_params.samples.0.ctrl_img_url: {said}" in str(caught.value)


def test_inspect_takes_several_columns(tmp_path, capsys):
    path = write(tmp_path, three_columns(tmp_path))
    names = ["--caption-column", "prompt", "--image-column", "after"]
    several = [part for name in "abc" for part in ("--control-image-column", name)]
    assert main(["inspect", str(path), *names, *several, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["used"]["control_image_columns"] == ["a", "b", "c"]
    assert (found["report"]["good_rows"], found["report"]["bad_rows"]) == (4, 1)
    assert main(["inspect", str(path), *names, *several, "--allow-no-control"]) == 0
    assert "5 rows, all usable" in capsys.readouterr().out
    assert main(["inspect", str(path), *names, *several, "--base-model", "tiny/flux-kontext"]) == 2
    assert "tiny/flux-kontext takes one control image, and 3 are named" in capsys.readouterr().err
