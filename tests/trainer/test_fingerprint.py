"""A run's fingerprint covers what changes the training, and stays what it was when fields are added."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field

from trainer.cli import parser, settings_options
from trainer.config import settings as settings_module
from trainer.config.recorded import NO_EFFECT_ON_TRAINING
from trainer.config.request import FineTuneRequest, TrainingParams, parse_request
from trainer.config.settings import RunSettings, parse_settings
from trainer.models.edit_model import EditModel
from trainer.training.metadata import export_metadata
from trainer.training.run_folder import RunFolder, run_fingerprint

COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}


def request_of(**params: Any) -> FineTuneRequest:
    return parse_request(
        {
            "resource": "a.parquet",
            "base_model": "tiny/flux-kontext",
            "script_type": "image_editing",
            "training_params": COLUMNS | params,
        }
    )


def fingerprint(params: dict[str, Any], settings: RunSettings, world_size: int = 1) -> str:
    return run_fingerprint(request_of(**params), settings, "d" * 64, ["t", "v", "x"], world_size)


@pytest.mark.parametrize(
    ("params", "settings", "world_size", "recorded"),
    [
        ({}, {}, 1, "9a6f4432d14d43c214cae18ca0e1070a2a8f040353ce8fb9bd190b857d4d4477"),
        (
            {
                "batch_size": 4,
                "learning_rate": 1e-4,
                "timestep_type": "sigmoid",
                "use_lora": False,
                "gradient_accumulation": 2,
            },
            {"seed": 7, "optimizer": "adafactor", "precision": "bf16"},
            1,
            "fd79b6f0c4a06f924018b6965a7253808098f2b34d699a4c1650d5f677db7e58",
        ),
        (
            {"steps": 10, "samples": []},
            {"offload": "phases", "lora_targets": "all-linear", "caption_dropout": 0.1, "resolution": 512},
            2,
            "ff3b67692b771e260dab4c0fd5b61e9ea1c3cf8d045cf47c3de6d74603d5f196",
        ),
    ],
)
def test_fingerprints_of_the_first_release_are_found_again(params, settings, world_size, recorded):
    assert fingerprint(params, parse_settings(settings), world_size) == recorded


def other_value(model: type[BaseModel], name: str) -> Any:
    """A valid value of a field that is not its default."""
    field = model.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return next(choice for choice in get_args(field.annotation) if choice != field.default)
    if name == "samples":
        return []
    if field.annotation is bool:
        return not field.default
    return {int: 7, float: 0.5, str: "other"}[field.annotation]


def test_every_field_that_changes_the_training_gives_a_fingerprint_of_its_own():
    usual = fingerprint({}, RunSettings())
    changed = {"nothing": usual}
    for name in TrainingParams.model_fields:
        value = fingerprint({name: other_value(TrainingParams, name)}, RunSettings())
        if TrainingParams.changes_training(name):
            changed[name] = value
        else:
            assert value == usual, name
    for name in RunSettings.model_fields:
        value = fingerprint({}, parse_settings({name: other_value(RunSettings, name)}))
        if RunSettings.changes_training(name):
            changed[name] = value
        else:
            assert value == usual, name
    for (first, one), (second, other) in combinations(changed.items(), 2):
        assert one != other, f"{first} and {second}"


class Extended(RunSettings):
    """The settings with two that a later version might add."""

    loss_type: Literal["mse", "huber"] = Field("mse", description="Made up.")
    log_every: int = Field(1, ge=1, description="Made up.", json_schema_extra=NO_EFFECT_ON_TRAINING)


def test_a_new_setting_is_in_the_fingerprint_only_where_it_is_set():
    usual = fingerprint({}, RunSettings())
    assert fingerprint({}, Extended()) == usual
    assert fingerprint({}, Extended(log_every=5)) == usual
    assert fingerprint({}, Extended(loss_type="huber")) != usual


def test_a_new_parameter_is_in_the_fingerprint_and_the_header_only_where_it_is_set(kontext: EditModel):
    class Later(TrainingParams):
        reward: float = Field(0.0, description="Made up.")

    def record(params: TrainingParams) -> tuple[str, dict[str, str]]:
        request = request_of().model_copy(update={"training_params": params})
        return (
            run_fingerprint(request, RunSettings(), "d", ["t"]),
            export_metadata(request, RunSettings(), kontext, 1),
        )

    usual = record(TrainingParams(**COLUMNS))
    assert record(Later(**COLUMNS)) == usual
    fingerprint, header = record(Later(**COLUMNS, reward=1.0))
    assert fingerprint != usual[0]
    assert json.loads(header["edit_trainer.request"])["training_params"]["reward"] == 1.0


def test_a_new_setting_is_in_the_header_only_where_it_is_set(kontext: EditModel):
    usual = export_metadata(request_of(), RunSettings(), kontext, 1)
    assert export_metadata(request_of(), Extended(), kontext, 1) == usual
    header = export_metadata(request_of(), Extended(loss_type="huber", log_every=5), kontext, 1)
    recorded = json.loads(header["edit_trainer.settings"])
    assert recorded == json.loads(usual["edit_trainer.settings"]) | {"loss_type": "huber", "log_every": 5}


def test_a_new_setting_is_an_option_a_key_of_the_file_and_part_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for module in (settings_options, settings_module):
        monkeypatch.setattr(module, "RunSettings", Extended)
    file = tmp_path / "settings.json"
    file.write_text('{"loss_type": "huber"}')
    options = parser.build_parser().parse_args(["train", "request.json", "--settings", str(file)])
    assert settings_options.read_settings(options) == Extended(loss_type="huber")
    options = parser.build_parser().parse_args(["train", "request.json", "--loss-type", "huber"])
    settings = settings_options.read_settings(options)
    assert settings == Extended(loss_type="huber")
    RunFolder(tmp_path / "run").begin(request_of(), settings, {"fingerprint": "f", "precision": "fp32"})
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["loss_type"] == "huber"
