from __future__ import annotations

import json

import pytest

from trainer.data.load_request import load_request, resolve_resource
from trainer.data.parquet import parquet_columns
from trainer.errors import BadInput

from .edits import NAMES, write, write_files


def request_of(resource: str, **params: object) -> dict:
    return {
        "resource": resource,
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": {**NAMES, **params},
    }


def test_a_resource_is_looked_for_in_order(tmp_path, monkeypatch):
    here, inputs, beside = tmp_path / "here", tmp_path / "input", tmp_path / "request"
    for folder in (here, inputs, beside):
        folder.mkdir()
    monkeypatch.chdir(here)
    places = [here / "main", inputs / "main", here, inputs]
    for folder in reversed(places):
        folder.mkdir(exist_ok=True)
        (folder / "edits.parquet").touch()
        assert resolve_resource("main/edits.parquet", inputs).resolve() == folder / "edits.parquet"
    assert resolve_resource(str(inputs / "edits.parquet")) == inputs / "edits.parquet"
    (beside / "other.parquet").touch()
    assert resolve_resource("main/other.parquet", inputs, beside) == beside / "other.parquet"
    with pytest.raises(BadInput) as caught:
        resolve_resource("main/none.parquet", inputs)
    for folder in places:
        assert str(folder / "none.parquet") in str(caught.value)
    assert resolve_resource("main", inputs).resolve() == here / "main"
    assert resolve_resource("main/*.parquet", inputs).resolve() == here / "main" / "*.parquet"
    (here / "main" / "edits.parquet").unlink()
    assert resolve_resource("main/*.parquet", inputs).resolve() == inputs / "main" / "*.parquet"
    with pytest.raises(BadInput, match="is a folder without a parquet file"):
        resolve_resource("main", inputs)


def test_a_request_with_its_parquet(tmp_path):
    path = write(tmp_path, write_files(tmp_path, 2))
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request_of("main/edits.parquet", steps=7)))
    request, found = load_request(file)
    assert (request.training_params.steps, found) == (7, path)
    assert load_request(request_of(str(path)))[1] == path
    assert load_request(json.dumps(request_of("edits.parquet")), tmp_path)[1] == path
    assert parquet_columns(path) == {"prompt": "string", "before": "string", "after": "string"}


def test_all_faults_of_a_request_columns_included_in_one_message(tmp_path):
    write(tmp_path, write_files(tmp_path, 2))
    data = request_of("edits.parquet", steps=0, caption_column="promt", image_column="before", learning_rat=1)
    with pytest.raises(BadInput) as caught:
        load_request(data, tmp_path)
    message = str(caught.value)
    assert message.startswith("The request has 4 faults:")
    assert "training_params.steps: 0 is too small" in message
    assert "training_params.learning_rat: unknown field" in message
    assert (
        'training_params.caption_column: "promt" is not a column of edits.parquet (did you mean "prompt"?); '
        'its columns are "prompt", "before", "after"'
    ) in message
    assert 'training_params.image_column: "before" is also the control_image_column' in message
    with pytest.raises(BadInput, match=r"(?s)has 2 faults:.*steps: 0.*resource: .* is not found; tried"):
        load_request(request_of("none.parquet", steps=0), tmp_path)
    (tmp_path / "text.parquet").write_text("hello, this is no parquet")
    with pytest.raises(BadInput, match=r"(?s)has 2 faults:.*steps: 0.*resource: .*cannot be read as a parquet"):
        load_request(request_of("text.parquet", steps=0), tmp_path)
    for data in ([], None, {}, {"resource": 3, "training_params": []}):
        with pytest.raises(BadInput):
            load_request(json.dumps(data), tmp_path)
    with pytest.raises(BadInput, match=r"Cannot read the request .*none\.json"):
        load_request(tmp_path / "none.json")
