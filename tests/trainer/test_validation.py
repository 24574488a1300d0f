"""The loss on held-out rows: which rows they are, that its value depends on weights alone, and the best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.cli.main import main
from trainer.errors import BAD_INPUT, OK, BadInput
from trainer.events import Checkpoint, Finished, Notice, Planned, Step, Validation
from trainer.training import loop
from trainer.training.checkpoint import checkpoint_steps
from trainer.training.held_out import HeldOut, held_out_count
from trainer.training.state import TrainState

HELD_OUT = {"validation_rows": 2.0, "validate_every": 1}
WITHOUT_SAMPLES = {"sample_every": 100}


def curve(runs: Any, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (runs.folder / name / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "validation"]


def trained_rows(runs: Any, model: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[set[int], set[int]]:
    """Rows that a run of some epochs trains on, and those whose loss it measures."""
    trained: set[int] = set()
    measured: set[int] = set()
    step, loss = loop.micro_step, HeldOut.loss

    def watch(components: Any, batch: Any, *rest: Any) -> Any:
        trained.update(example.row for example in batch.examples)
        return step(components, batch, *rest)

    def look(self: HeldOut) -> Any:
        measured.update(example.row for example in self.examples)
        return loss(self)

    monkeypatch.setattr(loop, "micro_step", watch)
    monkeypatch.setattr(HeldOut, "loss", look)
    runs.run(model, f"rows-{settings}".replace(":", "")[:60], settings=settings, steps=14, **WITHOUT_SAMPLES)
    return trained, measured


def test_the_number_of_held_out_rows():
    assert [held_out_count(10, amount) for amount in (0, 0.04, 0.25, 0.5, 1, 3, 9)] == [0, 1, 2, 5, 1, 3, 9]
    for amount in (10, 0.96):
        with pytest.raises(BadInput, match=f"validation_rows: {amount} would hold out 10 of 10 usable rows"):
            held_out_count(10, amount)
    with pytest.raises(BadInput, match=r"validation_rows: 5\.9 is no whole number of rows"):
        held_out_count(10, 5.9)


@pytest.mark.slow
def test_held_out_rows_are_never_trained_on(kontext, runs, monkeypatch):
    trained, measured = trained_rows(runs, kontext, monkeypatch, validation_rows=2.0)
    assert len(measured) == 2
    assert trained == {*range(6)} - measured
    again, same = trained_rows(runs, kontext, monkeypatch, validation_rows=2.0, keep_best=False)
    assert (again, same) == (trained, measured)
    other = {tuple(trained_rows(runs, kontext, monkeypatch, validation_rows=2.0, seed=seed)[1]) for seed in (1, 2, 3)}
    assert len(other) > 1
    everything, nothing = trained_rows(runs, kontext, monkeypatch)
    assert (everything, nothing) == ({*range(6)}, set())


def test_a_run_that_would_hold_out_all_rows_is_refused_before_anything_is_loaded(kontext, runs):
    with pytest.raises(BadInput, match="validation_rows: 6 would hold out 6 of 6 usable rows"):
        runs.run(kontext, settings={"validation_rows": 6.0})
    assert not (runs.folder / "run" / "request.json").exists()
    assert not list(runs.cache.glob("??"))


@pytest.mark.slow
def test_the_held_out_loss_depends_on_the_weights_alone(model, runs):
    same = {"steps": 3, "learning_rate": 0.01, **WITHOUT_SAMPLES}
    settings = HELD_OUT | {"caption_dropout": 0.5}
    events = runs.run(model, "whole", settings=settings, cache_text_embeddings=True, **same)
    found = [(event.step, event.loss) for event in events if isinstance(event, Validation)]
    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert len({loss for _, loss in found}) == 4
    assert curve(runs, "whole") == found
    with closing(runs.events(model, "cut", settings=settings, **same)) as cut:
        for event in cut:
            if isinstance(event, Step) and event.step == 2:
                break
    assert curve(runs, "cut") == found[:2]
    runs.run(model, "cut", settings=settings, **same)
    assert curve(runs, "cut") == found
    with closing(runs.events(model, "measured", settings=settings, **same)) as cut:
        for event in cut:
            if isinstance(event, Validation) and event.step == 2:
                break
    assert curve(runs, "measured") == found[:3]
    runs.run(model, "measured", settings=settings, **same)
    assert curve(runs, "measured") == found, "nothing is measured twice"
    start = {"init_lora": str(runs.folder / "whole" / "whole-000003.safetensors"), **HELD_OUT}
    for batch in (1, 2, 4):
        runs.run(model, f"batch-{batch}", settings=start, batch_size=batch, **same)
    firsts = {curve(runs, f"batch-{batch}")[0] for batch in (1, 2, 4)}
    assert len(firsts) == 1
    assert firsts != {found[0]}
    assert len({curve(runs, f"batch-{batch}")[1] for batch in (1, 2, 4)}) == 3


@pytest.mark.slow
def test_measuring_changes_no_weight(kontext, runs):
    runs.run(kontext, "measured", settings=HELD_OUT, steps=3)
    runs.run(kontext, "once", settings=HELD_OUT | {"validate_every": 100, "keep_best": False}, steps=3)
    assert runs.losses("measured") == runs.losses("once")
    measured, once = (load_file(runs.folder / name / f"{name}-000003.safetensors") for name in ("measured", "once"))
    assert all(torch.equal(tensor, once[name]) for name, tensor in measured.items())


class Losses:
    """Held-out losses in place of measured ones, by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: Sequence[float]) -> None:
        self.losses = losses
        self.step = 0
        advance = TrainState.update

        def update(state: TrainState, *rest: Any) -> Any:
            result = advance(state, *rest)
            self.step = state.step
            return result

        def loss(held_out: HeldOut) -> Any:
            yield from ()
            return self.losses[self.step]

        monkeypatch.setattr(TrainState, "update", update)
        monkeypatch.setattr(HeldOut, "loss", loss)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_exported(kontext, runs, monkeypatch):
    Losses(monkeypatch, [0.9, 0.5, 0.3, 0.4, 0.45, 0.5, 0.6])
    settings = HELD_OUT | {"checkpoint_every": 1, "keep_checkpoints": 2}
    events = runs.run(kontext, settings=settings, steps=6, **WITHOUT_SAMPLES)
    best = [event.step for event in events if isinstance(event, Validation) and event.best]
    assert best == [0, 1, 2]
    folder = runs.folder / "run"
    assert checkpoint_steps(folder / "checkpoints") == [2, 5, 6]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_weights == folder / "run-000002-best.safetensors"
    runs.run(kontext, "two", settings={"validation_rows": 2.0, "keep_best": False}, steps=2, **WITHOUT_SAMPLES)
    assert checkpoint_steps(runs.folder / "two" / "checkpoints") == [2]
    exported = [load_file(path) for path in (finished.best_weights, runs.folder / "two" / "two-000002.safetensors")]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    (again,) = [event for event in runs.run(kontext, settings=settings, steps=6, **WITHOUT_SAMPLES)][-1:]
    assert (again.weights, again.best_weights) == (finished.weights, finished.best_weights)


@pytest.mark.slow
def test_the_average_of_the_best_checkpoint_is_exported_too(kontext, runs, monkeypatch, capsys):
    Losses(monkeypatch, [0.9, 0.5, 0.3, 0.4])
    settings = HELD_OUT | {"ema_decay": 0.9, "keep_checkpoints": 1}
    finished = runs.run(kontext, settings=settings, steps=3, **WITHOUT_SAMPLES)[-1]
    folder = runs.folder / "run"
    assert isinstance(finished, Finished)
    assert finished.best_ema_weights == folder / "run-000002-best-ema.safetensors"
    Losses(monkeypatch, [0.9, 0.5, 0.3])
    short = runs.run(kontext, "two", settings=settings, steps=2, **WITHOUT_SAMPLES)[-1]
    assert finished.best_ema_weights.read_bytes() == short.ema_weights.read_bytes()
    again = runs.run(kontext, settings=settings, steps=3, **WITHOUT_SAMPLES)[-1]
    assert again.best_ema_weights == finished.best_ema_weights, "a finished run knows it"
    command = ["export", str(folder), "--step", "2", "--model", str(kontext.folder)]
    assert main([*command, "--ema"]) == OK
    assert "run-000002-ema.safetensors" in capsys.readouterr().out
    assert (folder / "run-000002-ema.safetensors").read_bytes() == finished.best_ema_weights.read_bytes()
    Losses(monkeypatch, [0.9, 0.5])
    runs.run(kontext, "plain", settings=HELD_OUT, steps=1, **WITHOUT_SAMPLES)
    assert main(["export", str(runs.folder / "plain"), "--ema", "--model", str(kontext.folder)]) == BAD_INPUT
    assert "step-000001 has no averaged weights" in capsys.readouterr().err


def test_a_best_checkpoint_that_is_damaged_does_not_keep_the_run_from_its_end(kontext, runs, monkeypatch):
    Losses(monkeypatch, [0.9, 0.5, 0.6])
    events = []
    for event in runs.events(kontext, settings=HELD_OUT, steps=2, **WITHOUT_SAMPLES):
        events.append(event)
        if isinstance(event, Checkpoint) and event.step == 2:
            (runs.folder / "run/checkpoints/step-000001/weights.safetensors").write_bytes(b"damaged")
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.weights and finished.best_weights is None
    said = [event.message for event in events if isinstance(event, Notice)]
    assert any("lowest held-out loss are not exported" in message and "step-000001" in message for message in said)


def test_a_best_step_where_no_checkpoint_is_due_is_saved(kontext, runs, monkeypatch):
    Losses(monkeypatch, [0.9, 0.5, 0.3, 0.4, 0.45, 0.5, 0.6])
    events = runs.run(kontext, settings=HELD_OUT | {"keep_checkpoints": 1}, steps=6, **WITHOUT_SAMPLES)
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [1, 2, 6]
    assert checkpoint_steps(runs.folder / "run" / "checkpoints") == [2, 6]


def test_a_run_that_never_beats_its_start_exports_no_best_step_above_it(kontext, runs, monkeypatch):
    Losses(monkeypatch, [0.1, 0.5, 0.3])
    events = runs.run(kontext, settings=HELD_OUT, steps=2, **WITHOUT_SAMPLES)
    assert [event.best for event in events if isinstance(event, Validation)] == [True, False, False]
    assert isinstance(events[-1], Finished)
    assert events[-1].best_weights is None


def test_a_rise_for_long_is_said_once(kontext, runs, monkeypatch):
    Losses(monkeypatch, [0.9, 0.5, 0.3, 0.35, 0.36, 0.37, 0.38, 0.39, 0.4])
    events = runs.run(kontext, settings=HELD_OUT, steps=8, **WITHOUT_SAMPLES)
    said = [event.message for event in events if isinstance(event, Notice) and "held-out" in event.message]
    assert len(said) == 1
    assert "since step 2, where it was 0.3000; now it is 0.3800" in said[0]
    assert said[0].endswith("The checkpoint of step 2 is kept.")
    Losses(monkeypatch, [0.9, 0.5, 0.301, 0.302, 0.302, 0.303, 0.302, 0.303, 0.303])
    events = runs.run(kontext, "flat", settings=HELD_OUT, steps=8, **WITHOUT_SAMPLES)
    assert not [event for event in events if isinstance(event, Notice) and "held-out" in event.message]


def test_what_it_costs_is_part_of_the_plan(kontext, runs):
    def planned(**settings: Any) -> str:
        events = runs.events(kontext, "planned", settings=settings, steps=4, batch_size=2, **WITHOUT_SAMPLES)
        with closing(events):
            return next(event.line for event in events if isinstance(event, Planned))

    assert "held-out" not in planned()
    line = planned(validation_rows=2.0, validate_every=10)
    assert line.endswith("; held-out loss of 2 rows every 10 steps: 8 forward passes, about 13 % more time")
    assert planned(validation_rows=0.5).endswith(
        "; held-out loss of 3 rows every 100 steps: 12 forward passes, about 2.0 % more time"
    )
