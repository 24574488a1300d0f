"""Every phase of a run is planned, on the device and the host, and what cannot fit is refused before loading."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo, assumed_gpu
from trainer.errors import BadInput
from trainer.memory.encoder_bytes import encoder_bytes
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import PhaseMemory, Plan
from trainer.memory.planner import make_plan
from trainer.models.edit_model import EditModel, open_model

from .steps import COLUMNS

pytestmark = pytest.mark.xdist_group("plans")  # In one process: what was counted once is known to the next test.

QWEN, KONTEXT = "Qwen/Qwen-Image-Edit", "black-forest-labs/FLUX.1-Kontext-dev"
NAMES = ["encoding texts", "encoding images", "loading", "training", "sampling"]
GB = 10**9


def card(vram: float, host: float) -> DeviceInfo:
    return replace(assumed_gpu(vram, host), expandable_segments=True, spills=False, compiler=True)


@cache
def opened(base_model: str) -> EditModel:
    return open_model(base_model)


def planned(base_model: str, vram: float, host: float = 64, cached: bool = True, **params: object) -> Plan:
    """The plan at 512 x 512."""
    request = TrainingParams(**COLUMNS, cache_text_embeddings=cached, **params)
    settings = RunSettings(resolution=512, control_resolution="target")
    return make_plan(opened(base_model), request, settings, card(vram, host))


def phases(plan: Plan) -> dict[str, PhaseMemory]:
    assert [phase.name for phase in plan.phases] in (NAMES, NAMES[:-1])
    return {phase.name: phase for phase in plan.phases}


@pytest.mark.slow
@pytest.mark.parametrize("base_model", [QWEN, KONTEXT])
@pytest.mark.parametrize(("vram", "host"), [(24, 32), (12, 32), (8, 64)])
def test_every_phase_fits(base_model: str, vram: int, host: int):
    plan = planned(base_model, vram, host)
    found = phases(plan)
    assert found["training"].device == plan.bytes
    for phase in found.values():
        assert 0 < phase.device <= vram * GB
        assert 0 < phase.host <= host * GB
    assert found["loading"].host < found["training"].host + 1.3 * GB


@pytest.mark.slow
def test_an_encoder_that_is_larger_than_the_device_is_streamed():
    encoder = encoder_bytes(opened(QWEN), torch.bfloat16)
    assert encoder is not None
    assert encoder.resident > 12 * GB
    whole, streamed = phases(planned(QWEN, 24)), phases(planned(QWEN, 12))
    assert whole["encoding texts"].device > encoder.resident
    assert streamed["encoding texts"].device < 12 * GB
    assert streamed["encoding texts"].host == encoder.resident


@pytest.mark.slow
def test_texts_that_are_not_cached_keep_the_encoder_on_the_host():
    cached, waiting = (phases(planned(KONTEXT, 12, cached=cached)) for cached in (True, False))
    encoder = encoder_bytes(opened(KONTEXT), torch.bfloat16)
    assert encoder is not None
    assert waiting["training"].host - cached["training"].host == encoder.resident
    assert waiting["encoding texts"].host > cached["encoding texts"].host


@pytest.mark.slow
def test_a_host_without_room_for_both_streams_the_encoder():
    assert not planned(KONTEXT, 24, 64, cached=False).stream_text_encoder
    assert planned(KONTEXT, 16, 20, cached=False).stream_text_encoder


@pytest.mark.slow
def test_a_host_that_cannot_hold_the_encoder_is_refused_and_told_why():
    with pytest.raises(BadInput, match=r"encoding texts takes .* 15\.\d GB of host memory.*fp8") as refused:
        planned(QWEN, 24, 12)
    assert "12 GB of host memory" in str(refused.value)


@pytest.mark.slow
def test_a_host_that_cannot_keep_the_encoder_is_told_to_cache_texts():
    with pytest.raises(BadInput, match="It fits with cache_text_embeddings true"):
        planned(QWEN, 12, 25, cached=False)
    assert planned(QWEN, 12, 25).phases


@pytest.mark.slow
def test_samples_count_where_there_are_some():
    found = phases(planned(KONTEXT, 12))
    assert "sampling" not in phases(planned(KONTEXT, 12, samples=[]))
    large = phases(planned(KONTEXT, 12, sample_width=2048, sample_height=2048))
    assert large["sampling"].device > found["sampling"].device


@pytest.mark.slow
def test_what_a_host_program_loads_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    model = opened("tiny/flux-kontext")
    ported = replace(model, ports=SimpleNamespace())
    own, theirs = (
        {phase.name: phase for phase in make_plan(each, TrainingParams(**COLUMNS), RunSettings(), card(24, 64)).phases}
        for each in (model, ported)
    )
    assert theirs["encoding texts"].device == theirs["encoding images"].device == 0
    assert own["encoding images"].device > 0
    assert theirs["training"].device == own["training"].device


def test_parts_that_wait_on_the_host_are_known(kontext: EditModel):
    components = ModelComponents(
        kontext, torch.device("cpu"), Plan(precision="fp32", dtype=torch.float32, offload="auto")
    )
    encoder = encoder_bytes(kontext, torch.float32)
    assert encoder is not None
    components.text_encoder()
    assert components.waiting_bytes == 0
    components._on_device.clear()
    assert components.waiting_bytes == pytest.approx(encoder.resident, rel=0.01)
    components.drop("text_encoder")
    assert components.waiting_bytes == 0


def test_the_cpu_has_no_phases(kontext: EditModel):
    plan = make_plan(
        kontext, TrainingParams(**COLUMNS), RunSettings(), DeviceInfo(kind="cpu", free=1, host=1, bf16=False)
    )
    assert plan.phases == ()


@pytest.mark.slow
def test_the_command_prints_all_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from trainer.cli.main import main

    file = tmp_path / "request.json"
    file.write_text(
        '{"resource": "a.parquet", "base_model": "tiny/flux-kontext", "script_type": "image_editing", '
        '"training_params": {"caption_column": "c", "control_image_column": "b", "image_column": "a"}}'
    )
    assert main(["plan", str(file), "--vram", "8", "--ram", "16"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  (\w+(?: \w+)?) +\d+\.\d\d +\d+\.\d\d$", said, re.MULTILINE) == NAMES
