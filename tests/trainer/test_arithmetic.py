"""How a run multiplies: chosen by what is fast and fits, kept with the run, and said where it changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.config import cuda_allocator
from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo, assumed_gpu
from trainer.events import Notice
from trainer.memory.planner import inference_plan, make_plan, precisions
from trainer.models.edit_model import EditModel, open_model
from trainer.quantization import benchmark
from trainer.quantization.benchmark import FastPrecisions
from trainer.training import setup

from .conftest import Runs
from .steps import COLUMNS

HOPPER = replace(assumed_gpu(80, 64), fast_precisions=frozenset({"int8", "fp8"}), capability=(9, 0))
"""int8 beats dequantizing there, but not plain bf16."""


def chosen(device_info: DeviceInfo, **settings: str) -> tuple[str, bool]:
    plan = make_plan(open_model("tiny/flux-kontext"), TrainingParams(**COLUMNS), RunSettings(**settings), device_info)
    return plan.precision, plan.quantize_activations


@pytest.mark.slow
def test_int8_has_to_beat_plain_bf16_where_that_fits():
    assert precisions(RunSettings(), HOPPER) == ["bf16", "int8"]
    assert chosen(HOPPER) == ("bf16", False)
    assert chosen(HOPPER, precision="int8") == ("int8", True)
    assert chosen(assumed_gpu(24, 64)) == ("int8", True)


@pytest.mark.slow
def test_the_setting_decides_whether_activations_are_rounded():
    assert chosen(assumed_gpu(24, 64), quantize_activations="off") == ("bf16", False)
    assert chosen(assumed_gpu(24, 64), quantize_activations="off", precision="int8") == ("int8", False)
    assert chosen(assumed_gpu(80, 64), precision="int8") == ("int8", False)
    assert chosen(assumed_gpu(80, 64), precision="int8", quantize_activations="on") == ("int8", True)
    plan = inference_plan(open_model("tiny/flux-kontext"), RunSettings(quantize_activations="off"), assumed_gpu(24))
    assert not plan.quantize_activations


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 2.0, 2.0), FastPrecisions(frozenset({"int8"}), frozenset({"int8"}))),
        ((1.0, 2.0, 1.1), FastPrecisions(frozenset({"int8"}), frozenset())),
        ((1.0, 1.1, 2.0), FastPrecisions(frozenset(), frozenset())),
    ],
)
def test_the_benchmark_times_plain_matmuls_too(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], expected: FastPrecisions
):
    """In the storage dtype, dequantized, and plain. fp8 is refused by this card."""
    device, times = torch.device("cpu"), iter(seconds)
    monkeypatch.setattr(benchmark, "compute_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(benchmark, "ROWS", 32)
    monkeypatch.setattr(benchmark, "INPUTS", 64)
    monkeypatch.setattr(benchmark, "OUTPUTS", 64)
    monkeypatch.setattr(benchmark, "_seconds", lambda step: (step(), next(times))[1])
    assert fast_precisions_of(device) == expected
    assert next(times, None) is None


def fast_precisions_of(device: torch.device) -> FastPrecisions:
    return benchmark.fast_precisions.__wrapped__(device)


# kept with the run


def recorded(runs: Runs) -> dict[str, str]:
    return json.loads((runs.folder / "run" / "run.json").read_text())


@pytest.mark.slow
def test_a_resumed_run_multiplies_as_it_began(kontext: EditModel, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    settings = {"precision": "int8"}
    runs.run(kontext, steps=2, settings=settings)
    assert recorded(runs).items() >= {"dtype": "float32", "quantize_activations": "off", "compile": "off"}.items()
    fast = replace(assumed_gpu(24), kind="cpu", bf16=False)
    monkeypatch.setattr("trainer.distributed.processes.query_device", lambda device: fast)
    events = runs.run(kontext, steps=4, settings=settings)
    assert recorded(runs)["quantize_activations"] == "off"
    assert not [event for event in events if isinstance(event, Notice)]


@pytest.mark.slow
def test_what_a_resumed_run_cannot_keep_is_said(kontext: EditModel, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    settings = {"precision": "fp8", "quantize_activations": "on"}
    monkeypatch.setattr(setup, "compute_capability", lambda device: (8, 9))
    runs.run(kontext, steps=1, settings=settings)
    assert recorded(runs)["quantize_activations"] == "on"
    monkeypatch.setattr(setup, "compute_capability", lambda device: (8, 6))
    notices = [event.message for event in runs.run(kontext, steps=2, settings=settings) if isinstance(event, Notice)]
    assert any("quantize_activations on before, off now" in message for message in notices)


@pytest.mark.slow
def test_a_run_without_the_record_resumes(kontext: EditModel, runs: Runs):
    runs.run(kontext, steps=2)
    state = recorded(runs)
    for name in ("dtype", "quantize_activations", "compile"):
        del state[name]
    (runs.folder / "run" / "run.json").write_text(json.dumps(state))
    assert not [event for event in runs.run(kontext, steps=3) if isinstance(event, Notice)]
    assert len(runs.losses()) == 3
    assert not (runs.folder / "run-2").exists()


# the reserve


def test_the_reserve_grows_with_what_the_allocator_juggles():
    linux = replace(assumed_gpu(24, 64), expandable_segments=True, spills=False)
    assert linux.reserve(0) == 500_000_000
    assert linux.reserve(10 * 10**9) == 1_300_000_000
    assert replace(linux, expandable_segments=False).reserve(10 * 10**9) == 1_700_000_000
    assert replace(linux, spills=True).reserve(0) == 1_000_000_000
    assert DeviceInfo(kind="cpu", free=1, host=1, bf16=False).reserve(10**9) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, False),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, False),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:128,expandable_segments:True"}, True),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="torch has expandable segments on Linux alone")
def test_the_command_line_asks_for_expandable_segments(given: dict[str, str], expected: bool):
    code = (
        "from trainer.cli.main import main; main(['--help']); import os\n"
        "from trainer.config.cuda_allocator import has_expandable_segments\n"
        "print(has_expandable_segments())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in cuda_allocator.VARIABLES} | given
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(expected), done.stderr


def test_other_systems_have_no_expandable_segments(monkeypatch: pytest.MonkeyPatch):
    for name in cuda_allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    cuda_allocator.use_expandable_segments()
    assert not cuda_allocator.has_expandable_segments()
    assert not any(name in os.environ for name in cuda_allocator.VARIABLES)
