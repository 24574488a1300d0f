"""Where a step uses autocast, and that the plan counts the memory of just that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import assumed_gpu
from trainer.memory import activation_bytes
from trainer.memory.estimate import MemoryEstimate
from trainer.memory.live_bytes import CudaAutocast, LiveBytes
from trainer.models.edit_model import EditModel, open_model
from trainer.modules import blocks_of

from .conftest import Runs
from .steps import COLUMNS

BF16, F32 = torch.bfloat16, torch.float32
PROMPT = {"ctrl_img_url": "", "prompt": "invert it"}


def seen_by_blocks(monkeypatch: pytest.MonkeyPatch, model: EditModel, runs: Runs, **request: object) -> set[bool]:
    """Whether autocast is on in the blocks of a run in bf16."""
    seen = set()
    load = EditModel.load_transformer

    def load_and_listen(self: EditModel, *args: object, **rest: object) -> torch.nn.Module:
        transformer = load(self, *args, **rest)
        for block in blocks_of(transformer):
            block.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
        return transformer

    monkeypatch.setattr(EditModel, "load_transformer", load_and_listen)
    runs.run(model, steps=1, **request)
    return seen


@pytest.mark.slow
def test_a_frozen_bf16_base_needs_no_autocast(model: EditModel, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    assert seen_by_blocks(monkeypatch, model, runs, settings={"precision": "bf16"}) == {False}


@pytest.mark.slow
def test_bf16_weights_with_rounding_need_no_autocast(kontext: EditModel, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    settings = {"precision": "bf16", "optimizer": "adafactor"}
    assert seen_by_blocks(monkeypatch, kontext, runs, settings=settings, use_lora=False) == {False}


@pytest.mark.slow
def test_float32_weights_are_cast_in_steps_and_samples(model: EditModel, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    request = {"settings": {"precision": "bf16"}, "use_lora": False, "sample_every": 1, "samples": [PROMPT]}
    assert seen_by_blocks(monkeypatch, model, runs, **request) == {True}
    assert len(list((runs.folder / "run" / "samples").glob("step-*.png"))) == 2


def estimate(model: EditModel, **how: object) -> MemoryEstimate:
    params = TrainingParams(**COLUMNS, use_lora=bool(how.pop("use_lora", True)))
    card = replace(assumed_gpu(24, 64), compiler=bool(how.pop("compiler", False)))
    return MemoryEstimate(model, params, RunSettings(**how), card, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "autocast"),
    [({}, False), ({"use_lora": False}, True), ({"use_lora": False, "optimizer": "adafactor"}, False)],
    ids=str,
)
def test_plans_say_whether_a_step_casts(how: dict, autocast: bool):
    plan = next(iter(estimate(open_model("tiny/flux-kontext"), **how).plans()))
    assert plan.autocast == autocast


def footprint(model: EditModel, blocks: int, monkeypatch: pytest.MonkeyPatch, **how: object):
    monkeypatch.setattr(activation_bytes, "BLOCKS", blocks)
    monkeypatch.setattr(activation_bytes, "_FOOTPRINTS", {})
    own = estimate(model, **how)
    return activation_bytes.measure(model, own.shape, own.params, own.settings, "none")


@pytest.mark.slow
def test_a_block_keeps_what_a_middle_one_does(monkeypatch: pytest.MonkeyPatch):
    """The first block's input has no gradient, so that it keeps less than the others."""
    model = open_model("tiny/qwen-image-edit")
    own, deeper, first = (footprint(model, blocks, monkeypatch).blocks for blocks in (activation_bytes.BLOCKS, 5, 2))
    assert own == deeper
    (kind,) = own
    assert first[kind].saved < own[kind].saved


@pytest.mark.slow
def test_what_a_compiler_fuses_has_no_temporaries():
    model, footprints = open_model("tiny/flux-kontext"), []
    for compiler in (False, True):
        own = estimate(model, compiler=compiler)
        assert own.shape.compiler == compiler
        footprints.append(activation_bytes.measure(model, own.shape, own.params, own.settings, "full"))
    eager, fused = footprints
    for kind, block in fused.blocks.items():
        assert block.work < 0.95 * eager.blocks[kind].work
        assert block.saved <= eager.blocks[kind].saved


def test_cuda_casts_more_to_float32_than_the_cpu():
    rows, weight = torch.randn(2, 8, dtype=BF16), torch.randn(8, 8)
    with torch.autocast("cpu", BF16):
        assert torch.nn.functional.layer_norm(rows, (8,)).dtype == BF16
        with CudaAutocast():
            assert torch.nn.functional.layer_norm(rows, (8,)).dtype == F32
            assert torch.nn.functional.rms_norm(rows, (8,), torch.ones(8)).dtype == F32
            assert rows.pow(2).dtype == (rows**2).dtype == F32
            assert torch.nn.functional.linear(rows, weight).dtype == BF16


def test_forgotten_and_given_tensors_do_not_count():
    given = torch.zeros(100)
    with LiveBytes([given]) as live:
        given.mul_(2)
        first, second = torch.zeros(10), torch.zeros(20)
        assert live.now == 120
        live.forget(first)
        live.forget(first)
        assert live.now == 80
        del first, second
    assert live.now == 0
    assert live.peak == 120
