"""The moving average of the trained weights: its formula, its file, resuming, and samples drawn from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.config.settings import parse_settings
from trainer.errors import BadInput
from trainer.events import Finished, Step
from trainer.memory.estimate import full_fine_tune_need
from trainer.models.edit_model import open_model

SAMPLES = [{"ctrl_img_url": "", "prompt": "invert it"}]
SETTINGS = {"ema_decay": 0.5, "checkpoint_every": 1, "keep_checkpoints": 10, "save_dtype": "fp32"}
STEPS = 4


def weights(folder: Path, step: int, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors")


def run(runs: Any, model: Any, name: str, **settings: Any) -> list[Any]:
    return runs.run(model, name, settings=SETTINGS | settings, steps=STEPS, learning_rate=0.01, sample_every=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("use_lora", [True, False])
def test_it_is_the_average_of_all_steps(kontext, runs, use_lora):
    events = runs.run(kontext, settings=SETTINGS, steps=STEPS, learning_rate=0.01, use_lora=use_lora)
    folder = runs.folder / "run"
    without = SETTINGS | {"ema_decay": 0.0}
    start = runs.run(kontext, "plain", settings=without, steps=STEPS, learning_rate=0.01, use_lora=use_lora)
    assert not list((runs.folder / "plain").rglob("*ema*"))
    assert all(
        torch.equal(tensor, weights(runs.folder / "plain", STEPS)[name])
        for name, tensor in weights(folder, STEPS).items()
    ), "the average changes no training"
    average = weights(folder, 1, "ema")
    for step in range(2, STEPS + 1):
        decay = min(0.5, (1 + step) / (10 + step))
        trained = weights(folder, step)
        average = {name: decay * value + (1 - decay) * trained[name] for name, value in average.items()}
        found = weights(folder, step, "ema")
        assert found.keys() == trained.keys()
        for name, value in average.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], value)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.ema_weights == folder / f"run-{STEPS:06d}-ema.safetensors"
    assert start[-1].ema_weights is None
    exported, last = load_file(finished.ema_weights), load_file(finished.weights)
    assert exported.keys() == last.keys()
    if use_lora:  # alpha equals the rank, so that nothing is folded in
        assert all(torch.equal(tensor, exported[f"transformer.{name}"]) for name, tensor in found.items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in exported.items())


@pytest.mark.slow
def test_a_resumed_run_has_the_same_average(kontext, runs):
    run(runs, kontext, "whole")
    events = runs.events(kontext, "cut", settings=SETTINGS, steps=STEPS, learning_rate=0.01, sample_every=STEPS)
    with closing(events):
        for event in events:
            if isinstance(event, Step) and event.step == 2:
                break
    run(runs, kontext, "cut")
    name = f"{STEPS:06d}-ema.safetensors"
    assert (runs.folder / "cut" / f"cut-{name}").read_bytes() == (runs.folder / "whole" / f"whole-{name}").read_bytes()


@pytest.mark.slow
def test_samples_can_be_drawn_with_it(kontext, runs):
    for name, sample_ema in (("trained", False), ("averaged", True)):
        settings = SETTINGS | {"sample_ema": sample_ema}
        runs.run(kontext, name, settings=settings, steps=STEPS, learning_rate=0.01, samples=SAMPLES)

    def drawn(name: str, step: int) -> bytes:
        return (runs.folder / name / "samples" / f"step-{step:06d}-00.png").read_bytes()

    assert drawn("trained", 0) == drawn("averaged", 0)
    assert drawn("trained", STEPS) != drawn("averaged", STEPS)
    trained, averaged = (
        load_file(runs.folder / name / f"{name}-{STEPS:06d}.safetensors") for name in ("trained", "averaged")
    )
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in trained.items())


def test_samples_of_no_average_are_refused(kontext, runs):
    with pytest.raises(BadInput, match="sample_ema: needs averaged weights; set ema_decay"):
        runs.run(kontext, settings={"sample_ema": True})


def test_a_decay_of_one_is_refused():
    with pytest.raises(BadInput, match="ema_decay"):
        parse_settings({"ema_decay": 1.0})


def test_its_memory_is_counted():
    model = open_model("black-forest-labs/FLUX.1-Kontext-dev")
    needs = [full_fine_tune_need(model, parse_settings({"ema_decay": decay})) for decay in (0.0, 0.9)]
    parameters = model.transformer_parameters()
    for need, each in zip(needs, (16, 20), strict=True):
        assert need is not None
        assert f"about {parameters * each / 1e9:.0f} GB" in need
