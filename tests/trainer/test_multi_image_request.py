"""The request multi_image_editing, and the fields that only the hosted service has a use for."""

from __future__ import annotations

import json

import pytest

from trainer.config.request import MultiImageParams, parse_request, request_faults
from trainer.errors import BadInput

from ..several_controls import SEVERAL, registered
from .test_schema import DEFAULTS, MINIMAL

COLUMNS = {"caption_column": "c", "control_image_columns": ["i", "j"], "image_column": "o"}
PUBLISHED = {name: value for name, value in DEFAULTS.items() if name != "cache_text_embeddings"}


@pytest.fixture(autouse=True)
def family():
    with registered():
        yield


def request(**params: object) -> dict:
    several = {"base_model": SEVERAL, "script_type": "multi_image_editing"}
    return {**MINIMAL, **several, "training_params": {**COLUMNS, **params}}


def test_the_published_defaults_and_nothing_else():
    assert parse_request(request()).training_params.model_dump() == {**COLUMNS, **PUBLISHED}
    assert set(MultiImageParams.model_fields) == {*COLUMNS, *PUBLISHED}


def test_json_in_and_out_without_loss():
    samples = [
        {"ctrl_img_url": ["ä.png", "b.png"], "prompt": "both"},
        {"ctrl_img_url": ["b.png"], "prompt": "one, as a list"},
        {"ctrl_img_url": "b.png", "prompt": "one, as text"},
        {"ctrl_img_url": "", "prompt": "the dataset's"},
    ]
    data = request(samples=samples, learning_rate=1.2345678901234567e-05)
    data |= {"is_public": False, "oxen_model_path": None}
    first = parse_request(json.dumps(data))
    out = json.loads(first.to_json())
    assert out == {**data, "training_params": {**PUBLISHED, **data["training_params"]}}
    assert list(out["training_params"]) == sorted(out["training_params"])
    assert parse_request(first.to_json()) == first
    assert [sample.control_urls for sample in first.training_params.samples] == [
        ["ä.png", "b.png"],
        ["b.png"],
        ["b.png"],
        [],
    ]


def test_all_faults_are_in_one_message():
    faults = request_faults(
        request(
            control_image_columns=["a", "", 3],
            control_image_column="a",
            cache_text_embeddings=True,
            steps=0,
            samples=[{"ctrl_img_url": 3, "prompt": "p"}, {"ctrl_img_url": ["a", 3], "prompt": "p"}],
        )
        | {"is_public": "yes", "oxen_model_path": 3}
    )
    assert faults == [
        'training_params.control_image_columns.1: is required but empty (value "")',
        "training_params.control_image_columns.2: 3 is not text",
        "training_params.samples.0.ctrl_img_url: 3 is not text or a list of texts",
        'training_params.samples.1.ctrl_img_url: ["a", 3] is not text or a list of texts',
        "training_params.steps: 0 is too small, the minimum is 1",
        'training_params.control_image_column: unknown field (value "a"); remove it or check its spelling',
        "training_params.cache_text_embeddings: unknown field (value true); remove it or check its spelling",
        'is_public: "yes" is not true or false',
        "oxen_model_path: 3 is not text",
    ]
    assert request_faults(request(control_image_columns=[])) == [
        "training_params.control_image_columns: is required but empty (value [])"
    ]


def test_an_unknown_script_type_is_told_apart_by_its_columns():
    faults = request_faults(request() | {"script_type": "image_editting"})
    assert faults == ["script_type: \"image_editting\" is not one of 'image_editing' or 'multi_image_editing'"]


def test_a_request_for_one_control_image_takes_no_lists():
    single = {
        **MINIMAL,
        "training_params": {**MINIMAL["training_params"], "samples": [{"ctrl_img_url": ["a"], "prompt": "p"}]},
    }
    assert request_faults(single) == ['training_params.samples.0.ctrl_img_url: ["a"] is not text']
    with pytest.raises(BadInput, match="control_image_columns: unknown field"):
        parse_request(request() | {"script_type": "image_editing"})


def test_fields_without_effect_are_written_only_where_they_were_given():
    assert "is_public" not in json.loads(parse_request(MINIMAL).to_json())
    assert parse_request(MINIMAL).notice() is None
    given = parse_request(MINIMAL | {"is_public": True})
    assert json.loads(given.to_json())["is_public"] is True
    assert given.notice() == "is_public of the request has no effect here."
