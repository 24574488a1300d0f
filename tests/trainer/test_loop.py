"""The loop as a whole: what a run leaves behind, and that stopping anywhere changes nothing."""

import json

from trainer.events import Checkpoint, Finished, Progress, Sample, Started, Step


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
