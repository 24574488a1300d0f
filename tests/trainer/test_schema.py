from __future__ import annotations

import json

import pytest

from trainer.config.request import FineTuneRequest, TrainingParams, parse_request, request_faults
from trainer.config.samples import DEFAULT_CONTROL_URL
from trainer.errors import BadInput

COLUMNS = {"caption_column": "c", "control_image_column": "i", "image_column": "o"}
MINIMAL = {
    "resource": "main/edits.parquet",
    "base_model": "black-forest-labs/FLUX.1-Kontext-dev",
    "script_type": "image_editing",
    "training_params": COLUMNS,
}
URL = "https://hub.oxen.ai/api/repos/ox/Oxen-Character-Simple-Vector-Graphic/file/main/images/reference/bloxy_white_bg.png"
DEFAULTS = {
    "batch_size": 1,
    "cache_text_embeddings": False,
    "gradient_accumulation": 1,
    "learning_rate": 0.0002,
    "lora_alpha": 16,
    "lora_rank": 16,
    "sample_every": 200,
    "sample_height": 1024,
    "sample_width": 1024,
    "samples": [
        {"ctrl_img_url": URL, "prompt": "an ox holding a sign that says 'Oxen.ai'"},
        {"ctrl_img_url": URL, "prompt": "a herd of oxen running in a field"},
    ],
    "steps": 3000,
    "timestep_type": "weighted",
    "use_lora": True,
}
COUNTS = [
    "batch_size",
    "gradient_accumulation",
    "lora_alpha",
    "lora_rank",
    "sample_every",
    "sample_height",
    "sample_width",
    "steps",
]


def request(**params: object) -> dict:
    return {**MINIMAL, "training_params": {**COLUMNS, **params}}


def test_the_published_defaults_and_nothing_else():
    params = parse_request(MINIMAL).training_params.model_dump()
    assert params == {**COLUMNS, **DEFAULTS}
    assert DEFAULT_CONTROL_URL == URL


@pytest.mark.parametrize("base_model", ["Qwen/Qwen-Image-Edit", "tiny/flux-kontext", "tiny/qwen-image-edit-plus"])
def test_base_models(base_model):
    assert parse_request({**MINIMAL, "base_model": base_model}).base_model == base_model


@pytest.mark.parametrize("field", COUNTS)
def test_whole_numbers_from_one(field):
    assert getattr(parse_request(request(**{field: 1})).training_params, field) == 1
    for value in (0, -5, 1.0, 1.5, True, "1", None, [1]):
        (fault,) = request_faults(request(**{field: value}))
        assert fault.startswith(f"training_params.{field}: {json.dumps(value)} is ")
    assert "the minimum is 1" in request_faults(request(**{field: 0}))[0]


@pytest.mark.parametrize("value", [1e-9, 1, 0.5])
def test_learning_rates(value):
    assert parse_request(request(learning_rate=value)).training_params.learning_rate == value


@pytest.mark.parametrize("value", [0, -1e-4, "1e-4", True, None, float("nan"), float("inf")])
def test_learning_rates_that_are_refused(value):
    (fault,) = request_faults(request(learning_rate=value))
    assert fault.startswith("training_params.learning_rate: ")


@pytest.mark.parametrize("field", ["cache_text_embeddings", "use_lora"])
def test_booleans(field):
    for value in (True, False):
        assert getattr(parse_request(request(**{field: value})).training_params, field) is value
    for value in (0, 1, "true", None):
        assert request_faults(request(**{field: value})) == [
            f"training_params.{field}: {json.dumps(value)} is not true or false"
        ]


def test_timestep_types():
    for value in ("weighted", "sigmoid", "linear"):
        assert parse_request(request(timestep_type=value)).training_params.timestep_type == value
    (fault,) = request_faults(request(timestep_type="Weighted"))
    assert all(name in fault for name in ('"Weighted"', "weighted", "sigmoid", "linear"))


@pytest.mark.parametrize("field", COLUMNS)
def test_columns_are_required_and_empty_is_missing(field):
    without = {name: value for name, value in COLUMNS.items() if name != field}
    assert request_faults({**MINIMAL, "training_params": without}) == [
        f"training_params.{field}: is required but missing"
    ]
    assert request_faults(request(**{field: ""})) == [f'training_params.{field}: is required but empty (value "")']
    assert request_faults(request(**{field: 3})) == [f"training_params.{field}: 3 is not text"]


@pytest.mark.parametrize("field", MINIMAL)
def test_the_outer_fields_are_required(field):
    without = {name: value for name, value in MINIMAL.items() if name != field}
    assert request_faults(without) == [f"{field}: is required but missing"]


def test_samples():
    assert parse_request(request(samples=[])).training_params.samples == []
    (sample,) = parse_request(request(samples=[{"ctrl_img_url": "a.png", "prompt": "p"}])).training_params.samples
    assert (sample.ctrl_img_url, sample.prompt) == ("a.png", "p")
    faults = request_faults(request(samples=[{"ctrl_img_url": 3, "prompt": "p", "seed": 1}, {}, "text"]))
    assert [fault.split(":")[0] for fault in faults] == [
        "training_params.samples.0.ctrl_img_url",
        "training_params.samples.0.seed",
        "training_params.samples.1.prompt",
        "training_params.samples.2",
    ]
    assert request_faults(request(samples={"prompt": "p"})) != []


def test_every_fault_is_in_one_message():
    data = {
        "resource": "",
        "base_model": "stabilityai/sdxl",
        "script_type": "text_to_image",
        "training_params": {"caption_column": "", "steps": 0, "learning_rate": "fast", "stepz": 5},
        "extra": {"a": 1},
    }
    with pytest.raises(BadInput) as caught:
        parse_request(data, more_faults=["training_params.image_column: no such column"])
    message = str(caught.value)
    assert message.startswith("The request has 11 faults:\n")
    for part in (
        'resource: is required but empty (value "")',
        "base_model: \"stabilityai/sdxl\" is not one of 'Qwen/Qwen-Image-Edit'",
        "script_type: \"text_to_image\" is not one of 'image_editing'",
        'caption_column: is required but empty (value "")',
        "control_image_column: is required but missing",
        "image_column: is required but missing",
        "steps: 0 is too small, the minimum is 1",
        'learning_rate: "fast" is not a number',
        "training_params.stepz: unknown field (value 5)",
        'extra: unknown field (value {"a": 1})',
        "training_params.image_column: no such column",
    ):
        assert f"{part}" in message


def test_json_in_and_out_without_loss():
    text = json.dumps(
        request(
            learning_rate=1.2345678901234567e-05,
            steps=10**15,
            samples=[{"ctrl_img_url": "C:\\bilder\\ä 😀.png", "prompt": 'a "quoted"\nline'}],
            use_lora=False,
        )
    )
    first = parse_request(text)
    assert parse_request(first.to_json()) == first
    out = json.loads(first.to_json())
    assert out == {
        **json.loads(text),
        "training_params": {**COLUMNS, **DEFAULTS, **json.loads(text)["training_params"]},
    }
    assert set(out["training_params"]) == set(TrainingParams.model_fields)


def test_a_request_does_not_change():
    parsed: FineTuneRequest = parse_request(MINIMAL)
    with pytest.raises(ValueError):
        parsed.training_params.steps = 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{'a': 1}", "line 1, column 2"),
        ('{"a": 1,\n "a": 2}', '"a" twice'),
        ("[]", r"request: \[\] is not an object"),
        ("null", "request: null is not an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"resource": "\\ud800"}', "half a character"),
        ('{"steps": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_text_that_is_no_request(text, says):
    with pytest.raises(BadInput, match=says) as caught:
        parse_request(text)
    str(caught.value).encode()
