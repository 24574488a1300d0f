"""The optimizers beside AdamW, through whole runs, and rounding at random."""

from __future__ import annotations

import json
import sys
from contextlib import closing

import pytest
import torch

from trainer.errors import BadInput
from trainer.events import Finished, Notice, Step
from trainer.training.optim import RoundedAdafactor, stochastically_rounded


def interrupted(runs, model, name: str, steps: int, **rest) -> None:
    """A run that is cancelled after some steps."""
    done = 0
    with closing(runs.events(model, name, **rest)) as events:
        for event in events:
            done += isinstance(event, Step)
            if done == steps:
                return


def test_rounding_at_random_keeps_the_mean():
    values = torch.tensor([1.0, -1.0, 1.0 + 2**-10, -(1.0 + 3 * 2**-10), 0.0, 3e-39, 1e30]).repeat(4000, 1)
    rounded = stochastically_rounded(values, torch.Generator().manual_seed(0)).float()
    step = 2**-7
    assert torch.equal(rounded[:, [0, 1, 4]], values[:, [0, 1, 4]])
    assert set(rounded[:, 2].tolist()) == {1.0, 1.0 + step}
    assert rounded[:, 2].mean() == pytest.approx(1.0 + 2**-10, abs=step * 0.03)
    assert rounded[:, 3].mean() == pytest.approx(-(1.0 + 3 * 2**-10), abs=step * 0.03)
    assert rounded[:, 6].mean() == pytest.approx(1e30, rel=1e-3)


def test_updates_far_below_bf16_are_not_lost():
    """Weights near 1 move by a thousandth of a bf16 step at a time: rounded to the nearest they would never move."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = RoundedAdafactor([weight], seed=0, lr=1e-5, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1 - 100 * 1e-5, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw8bit"])
def test_interrupted_and_resumed_is_never_interrupted(optimizer: str, kontext, runs):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    settings = {"optimizer": optimizer, "checkpoint_every": 2}
    runs.run(kontext, "whole", settings=settings)
    interrupted(runs, kontext, "parts", 2, settings=settings)
    runs.run(kontext, "parts", settings=settings)
    full_tensor, components = runs.weights("whole"), runs.weights("parts")
    assert all(torch.equal(full_tensor[name], components[name]) for name in full_tensor)


@pytest.mark.slow
def test_a_full_fine_tune_in_bf16_resumes_exactly(kontext, runs):
    settings = {"optimizer": "adafactor", "precision": "bf16", "checkpoint_every": 2, "save_dtype": "fp32"}
    runs.run(kontext, "whole", settings=settings, use_lora=False)
    interrupted(runs, kontext, "parts", 2, settings=settings, use_lora=False)
    runs.run(kontext, "parts", settings=settings, use_lora=False)
    full_tensor, components = runs.weights("whole"), runs.weights("parts")
    assert all(torch.equal(full_tensor[name], components[name]) for name in full_tensor)


def test_a_missing_package_is_said_before_anything_is_done(kontext, runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput, match=r'adamw8bit.*pip install "bitsandbytes'):
        runs.run(kontext, settings={"optimizer": "adamw8bit"})
    assert not (runs.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw8bit"])
def test_they_learn(optimizer: str, kontext, runs):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    rate = 0.3 if optimizer == "adafactor" else 0.01  # adafactor scales it by the size of the weights, which begin at 0
    events = runs.run(kontext, settings={"optimizer": optimizer}, steps=40, sample_every=40, learning_rate=rate)
    assert isinstance(events[-1], Finished)
    losses = runs.losses()
    assert sum(losses[20:]) < 0.95 * sum(losses[:20])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_a_schedule_that_an_extension_bends_is_said(kontext, runs, scheduler):
    """In a finished run, and in one that was stopped; of an earlier release too, which has steps in the request."""
    settings = {"lr_scheduler": scheduler}
    runs.run(kontext, steps=3, settings=settings)
    again = runs.run(kontext, steps=3, settings=settings)
    assert not [event for event in again if isinstance(event, Notice)]
    notices = [event.message for event in runs.run(kontext, steps=5, settings=settings) if isinstance(event, Notice)]
    if scheduler == "constant":
        assert notices == []
        return
    (notice,) = notices
    assert f"The {scheduler} schedule depends on steps, which were 3 and are 5 now: at step 4 the learning" in notice
    file = runs.folder / "run" / "run.json"
    state = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: state[name] for name in ("fingerprint", "finished_step", "weights", "precision")})
    )
    notices = [event.message for event in runs.run(kontext, steps=6, settings=settings) if isinstance(event, Notice)]
    assert "which were 5 and are 6 now" in notices[0]
