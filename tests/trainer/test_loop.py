"""The loop as a whole: what a run leaves behind, and that stopping anywhere changes nothing."""

import json
import math
from contextlib import closing
from itertools import islice

import pytest
import torch

from trainer.errors import RunFailed
from trainer.events import Checkpoint, Finished, Notice, Progress, RunControl, Sample, Started, Step
from trainer.training import loop
from trainer.training.checkpoint import last_step


@pytest.mark.slow
def test_a_run_tells_everything_and_leaves_its_folder(model, runs):
    samples = [{"ctrl_img_url": "", "prompt": "invert it"}, {"ctrl_img_url": "", "prompt": "again"}]
    events = runs.run(model, samples=samples)
    folder = runs.folder / "run"
    (started,) = [event for event in events if isinstance(event, Started)]
    assert (started.first_step, started.steps, started.examples, started.resumed_from) == (0, 4, 6, None)
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    assert [(event.step, event.index) for event in events if isinstance(event, Sample)] == [
        (step, index) for step in (0, 2, 4) for index in (0, 1)
    ]
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [2, 4]
    assert {event.phase for event in events if isinstance(event, Progress)} == {
        "checking",
        "caching",
        "loading",
        "training",
        "sampling",
        "saving",
    }
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert not finished.stopped
    assert finished.weights == folder / "run-000004.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "log.jsonl",
        "request.json",
        "run-000004.safetensors",
        "run.json",
        "run.lock",
        "samples",
        "settings.json",
    ]
    assert json.loads((folder / "request.json").read_text())["training_params"]["steps"] == 4
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "control-00.png",
        "control-01.png",
        *(f"step-{step:06d}-{index:02d}.png" for step in (0, 2, 4) for index in (0, 1)),
    ]
    assert len(runs.losses()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("model", "cached"), [("kontext", False), ("qwen", True)], indirect=["model"])
def test_interrupted_anywhere_and_resumed_is_never_interrupted(model, runs, cached):
    """After every sixth event; each of the four cases begins elsewhere, so that together they cut at most of them."""
    same = {"batch_size": 2, "gradient_accumulation": 2, "steps": 3, "cache_text_embeddings": cached}
    samples = [{"ctrl_img_url": "", "prompt": "invert it"}]
    runs.run(model, "warm", **same, samples=samples)  # so that all later runs find the same cache
    whole = runs.run(model, "whole", **same, samples=samples)
    trained = [
        number for number, event in enumerate(whole) if isinstance(event, Progress) and event.phase == "training"
    ]
    expected = (runs.folder / "whole" / "whole-000003.safetensors").read_bytes()
    begin = trained[0] + 3 * cached + (model.family.info.name == "qwen-image-edit")
    for cut in range(begin, len(whole), 6):
        name = f"cut-{cut}"
        with closing(runs.events(model, name, **same, samples=samples)) as events:
            for _ in islice(events, cut):
                pass
        steps_done = sum(isinstance(event, Step) for event in whole[:cut])
        assert last_step(runs.folder / name / "checkpoints") == steps_done
        again = runs.run(model, name, **same, samples=samples)
        assert isinstance(again[-1], Finished)
        assert len([event for event in again if isinstance(event, Step)]) == 3 - steps_done
        exported = (runs.folder / name / f"{name}-000003.safetensors").read_bytes()
        assert exported == expected
        assert runs.losses(name) == runs.losses("whole")
        assert sorted(path.name for path in (runs.folder / name / "samples").iterdir()) == sorted(
            path.name for path in (runs.folder / "whole" / "samples").iterdir()
        )


@pytest.mark.slow
def test_text_embeddings_cached_or_not_give_the_same_losses(model, runs):
    runs.run(model, "plain", steps=5, batch_size=2, cache_text_embeddings=False)
    runs.run(model, "cached", steps=5, batch_size=2, cache_text_embeddings=True)
    assert runs.losses("plain") == pytest.approx(runs.losses("cached"), abs=1e-6)


@pytest.mark.slow
def test_accumulation_of_two_equals_a_batch_of_two(model, runs):
    runs.run(model, "batch", steps=3, batch_size=2)
    runs.run(model, "accumulated", steps=3, gradient_accumulation=2)
    assert runs.losses("batch") == pytest.approx(runs.losses("accumulated"), rel=1e-5)
    one, two = runs.weights("batch"), runs.weights("accumulated")
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-5, rtol=1e-2) for name in one)


def test_stop_saves_after_the_current_step_and_says_so(model, runs):
    control = RunControl()
    events = []
    for event in runs.events(model, control=control, steps=50):
        events.append(event)
        if isinstance(event, Step) and event.step == 3:
            control.stop()
    assert isinstance(events[-1], Finished)
    assert events[-1].stopped
    assert (events[-1].step, events[-1].weights) == (3, None)
    assert last_step(runs.folder / "run" / "checkpoints") == 3


def test_stop_while_a_sample_is_saved_saves_the_step_too(kontext, runs):
    control = RunControl()
    samples = [{"ctrl_img_url": "", "prompt": "x"}]
    for event in runs.events(kontext, control=control, samples=samples, settings={"checkpoint_every": 4}):
        if isinstance(event, Sample) and event.step == 2:
            control.stop()
    assert last_step(runs.folder / "run" / "checkpoints") == 2


def test_stop_before_training_ends_at_once(kontext, runs):
    control = RunControl()
    control.stop()
    events = runs.run(kontext, control=control)
    assert isinstance(events[-1], Finished)
    assert events[-1].stopped
    assert not any(isinstance(event, Step) for event in events)


@pytest.mark.slow
def test_samples_on_demand(kontext, runs):
    control = RunControl()
    steps = []
    for event in runs.events(
        kontext, control=control, sample_every=100, samples=[{"ctrl_img_url": "", "prompt": "now"}]
    ):
        if isinstance(event, Step) and event.step == 3:
            control.sample_now()
        if isinstance(event, Sample):
            steps.append(event.step)
    assert steps == [0, 3, 4]


@pytest.mark.slow
def test_sampling_and_checkpoints_do_not_touch_the_training(model, runs):
    runs.run(model, "quiet", steps=4, sample_every=100)
    often = {"sample_every": 1, "samples": [{"ctrl_img_url": "", "prompt": "x"}]}
    runs.run(model, "often", **often, settings={"checkpoint_every": 1})
    assert runs.losses("quiet") == runs.losses("often")
    one, two = runs.weights("quiet"), runs.weights("often")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_finished_run_returns_at_once_and_more_steps_extend_it(model, runs):
    runs.run(model, steps=2)
    again = runs.run(model, steps=2)
    assert [type(event) for event in again] == [Finished]
    assert again[0].weights == runs.folder / "run" / "run-000002.safetensors"
    longer = runs.run(model, steps=4)
    assert [event.step for event in longer if isinstance(event, Step)] == [3, 4]
    runs.run(model, "whole", steps=4)
    assert (runs.folder / "run" / "run-000004.safetensors").read_bytes() == (
        runs.folder / "whole" / "whole-000004.safetensors"
    ).read_bytes()
    assert runs.losses() == runs.losses("whole")


@pytest.mark.slow
def test_another_training_under_the_same_name_gets_a_numbered_folder(kontext, runs):
    runs.run(kontext, steps=2)
    before = (runs.folder / "run" / "run-000002.safetensors").read_bytes()
    for learning_rate, folder in ((0.001, "run-2"), (0.002, "run-3"), (0.001, "run-2")):
        events = runs.run(kontext, steps=2, learning_rate=learning_rate)
        (warning,) = [event for event in events if isinstance(event, Notice)]
        assert str(runs.folder / folder) in warning.message
        assert warning.message.endswith(f"learning_rate is 0.0002 there and {learning_rate} here.")
        assert events[-1].run_dir == runs.folder / folder
    assert (runs.folder / "run" / "run-000002.safetensors").read_bytes() == before


@pytest.mark.slow
def test_fewer_steps_than_done_leave_the_longer_run_alone(kontext, runs):
    runs.run(kontext, steps=4)
    events = runs.run(kontext, steps=3)
    assert events[-1].run_dir == runs.folder / "run-2"
    assert last_step(runs.folder / "run" / "checkpoints") == 4


@pytest.mark.slow
def test_changed_pictures_are_another_training(kontext, runs):
    runs.run(kontext, steps=1)
    runs.write(pairs=7)
    assert runs.run(kontext, steps=1)[-1].run_dir == runs.folder / "run-2"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(kontext, runs):
    runs.run(kontext, "whole", steps=4, sample_every=1)
    with closing(runs.events(kontext, steps=4, sample_every=1)) as events:
        for event in events:
            if isinstance(event, Checkpoint) and event.step == 3:
                break
    (runs.folder / "run" / "checkpoints" / "step-000003" / "weights.safetensors").write_bytes(b"damaged")
    events = runs.run(kontext, steps=4, sample_every=1)
    assert any("step-000003 is damaged" in event.message for event in events if isinstance(event, Notice))
    assert [event.step for event in events if isinstance(event, Step)] == [3, 4]
    assert runs.losses() == runs.losses("whole")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(kontext, runs, monkeypatch):
    from trainer.training import loop

    real = loop.micro_step
    calls = []

    def explode(*arguments):
        calls.append(1)
        loss = real(*arguments)
        return loss * float("nan") if len(calls) > 2 else loss

    monkeypatch.setattr(loop, "micro_step", explode)
    with pytest.raises(RunFailed, match=r"(?s)finite number at step 3 .*step-000002"):
        runs.run(kontext, steps=4)
    monkeypatch.undo()
    assert [event.step for event in runs.run(kontext, steps=4) if isinstance(event, Step)] == [3, 4]
    assert all(math.isfinite(loss) for loss in runs.losses())


@pytest.mark.slow
def test_no_autograd_context_stays_open_across_a_yield(kontext, runs):
    samples = [{"ctrl_img_url": "", "prompt": "x"}]
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            wanted = torch.is_grad_enabled()
            for _ in runs.events(kontext, mode.__name__, steps=1, samples=samples):
                assert torch.is_grad_enabled() == wanted
                assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("compiler", "size", "said"), [(True, 0, 1), (True, 10**9, 0), (False, 0, 0)])
def test_a_long_first_step_is_announced(kontext, runs, monkeypatch, compiler, size, said):
    """Where a compiler for the device is, and for models whose functions it compiles."""
    monkeypatch.setattr(loop, "has_compiler", lambda kind: compiler)
    monkeypatch.setattr(loop, "FULL_SIZE_PARAMETERS", size)
    events = runs.run(kontext, steps=1)
    assert sum(isinstance(event, Notice) and event.message == loop.COMPILING for event in events) == said
