"""A device that runs out of memory in a step: planned again for less, from memory, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config.settings import parse_settings
from trainer.device import query_device
from trainer.errors import RunFailed
from trainer.events import Event, Finished, Notice, Planned, Progress, Sample, Step
from trainer.memory.plan import Plan
from trainer.training import loop, retry
from trainer.training.checkpoint import last_step
from trainer.training.run_folder import RunFolder

CPU = torch.device("cpu")
SAMPLES = [{"ctrl_img_url": "", "prompt": "invert it"}]
RUN: dict[str, Any] = {"steps": 4, "batch_size": 2, "gradient_accumulation": 2, "samples": SAMPLES}


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let given calls of a function of the loop, counted from 1, run out of memory."""

    def fail(*calls: int, function: str = "micro_step") -> None:
        real, count = getattr(loop, function), 0

        def replacement(*args: Any) -> Any:
            nonlocal count
            count += 1
            result = real(*args)
            if count in calls:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return result

        monkeypatch.setattr(loop, function, replacement)

    return fail


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("calls", [(1,), (4, 7)], ids=str)
@pytest.mark.parametrize("params", [{}, {"use_lora": False, "lora_rank": 4}], ids=["lora", "full"])
def test_the_run_is_the_undisturbed_one(kontext, runs, fail_at, calls, params) -> None:
    """Four micro-steps are two steps; those of the failed step run again. Equal bytes say so of all that is trained."""
    runs.run(kontext, "whole", **RUN, **params)
    fail_at(*calls)
    events = runs.run(kontext, "failed", **RUN, **params)
    assert isinstance(events[-1], Finished)
    assert len(of(Planned, events)) == 1 + len(calls)
    messages = [notice.message for notice in of(Notice, events) if "out of memory" in notice.message]
    assert messages == [
        f"The device ran out of memory after step {(calls[0] - 1) // 2}. Nothing is lost: the training goes on from "
        "there with a plan for less memory."
    ]
    assert [event.step for event in of(Step, events)] == [1, 2, 3, 4]
    assert runs.losses("failed") == runs.losses("whole")
    exported = [next((runs.folder / name).glob("*.safetensors")).read_bytes() for name in ("whole", "failed")]
    assert exported[0] == exported[1]


@pytest.mark.slow
def test_the_average_and_the_held_out_loss_go_on_too(kontext, runs, fail_at) -> None:
    how = RUN | {"sample_every": 100}
    settings = {"ema_decay": 0.9, "validation_rows": 2.0, "validate_every": 1}
    runs.run(kontext, "whole", settings=settings, **how)
    fail_at(5)
    runs.run(kontext, "failed", settings=settings, **how)
    folders = [runs.folder / name for name in ("whole", "failed")]
    curves = [RunFolder(folder).validation_losses() for folder in folders]
    assert curves[0] == curves[1]
    for end in ("000004", "000004-ema"):
        files = [folder / f"{folder.name}-{end}.safetensors" for folder in folders]
        assert files[0].read_bytes() == files[1].read_bytes(), end


@pytest.mark.slow
def test_texts_that_are_not_cached_and_8_bit_bases_go_on_too(qwen, runs, fail_at) -> None:
    how = RUN | {"cache_text_embeddings": False}
    runs.run(qwen, "whole", settings={"precision": "int8"}, **how)
    fail_at(3)
    runs.run(qwen, "failed", settings={"precision": "int8"}, **how)
    assert runs.losses("failed") == runs.losses("whole")


@pytest.mark.slow
def test_every_new_plan_takes_less(kontext, runs, fail_at, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plans: list[Plan] = []
    real = retry.make_plan

    def make_plan(model: Any, params: Any, settings: Any, device_info: Any) -> Plan:
        asked.append(device_info.free)
        plans.append(real(model, params, settings, device_info))
        return plans[-1]

    monkeypatch.setattr(retry, "make_plan", make_plan)
    fail_at(1, 2)
    events = runs.run(kontext, steps=1)
    first = real(kontext, runs.request(kontext).training_params, parse_settings({}), query_device(CPU)).bytes
    assert len(asked) == 2
    assert asked[1] == int(0.93 * asked[0]) < asked[0] <= 0.93 * first
    assert [event.line for event in of(Planned, events)[1:]] == [plan.line() for plan in plans]


@pytest.mark.slow
def test_a_third_failure_ends_the_run_at_its_last_step(kontext, runs, fail_at) -> None:
    fail_at(3, 4, 5)
    with pytest.raises(RunFailed, match=r"out of memory.*\n.*step-000002; the same request resumes"):
        runs.run(kontext)
    assert last_step(runs.folder / "run" / "checkpoints") == 2


@pytest.mark.slow
def test_a_plan_that_cannot_shrink_ends_the_run_at_its_last_step(kontext, runs, fail_at, monkeypatch) -> None:
    def refuse(*_: Any) -> Plan:
        raise retry.BadInput("The training does not fit.")

    monkeypatch.setattr(retry, "make_plan", refuse)
    fail_at(2)
    with pytest.raises(RunFailed, match=r"out of memory.*\nThe training does not fit\.\n.*step-000001"):
        runs.run(kontext)
    assert last_step(runs.folder / "run" / "checkpoints") == 1
    monkeypatch.undo()
    assert isinstance(runs.run(kontext)[-1], Finished)


@pytest.mark.slow
def test_sampling_out_of_memory_is_drawn_again(kontext, runs, fail_at, monkeypatch) -> None:
    real, failed = loop.Training._draw_samples, []

    def draw(self: Any) -> Any:
        drawing = real(self)
        for event in drawing:
            if isinstance(event, Progress) and not failed:
                failed.append(event)
                drawing.throw(torch.OutOfMemoryError("CUDA out of memory."))
            yield event

    monkeypatch.setattr(loop.Training, "_draw_samples", draw)
    events = runs.run(kontext, samples=SAMPLES)
    assert failed
    assert isinstance(events[-1], Finished)
    assert [event.step for event in of(Sample, events)] == [0, 2, 4]


@pytest.mark.slow
def test_an_update_that_fails_halfway_is_not_tried_again(kontext, runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: torch.optim.Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RunFailed, match="out of memory"):
        runs.run(kontext)
