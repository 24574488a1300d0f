"""Weights of steps before the last: exported when a run is stopped, and from its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.cli.main import main
from trainer.errors import BAD_INPUT, OK, BadInput
from trainer.events import Finished, RunControl, Sample, Step
from trainer.training.export import export_checkpoint
from trainer.training.run_folder import RunFolder

SAMPLES = [{"ctrl_img_url": "", "prompt": "invert it"}]


def stopped_and_exported(runs, model, after: int, **how) -> tuple[Finished, list[tuple[int, int]]]:
    """The end of a run that is stopped after a step, and the samples it drew."""
    control = RunControl()
    events = []
    for event in runs.events(model, control=control, **how):
        events.append(event)
        if isinstance(event, Step) and event.step == after:
            control.stop_and_export()
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished, [(event.step, event.index) for event in events if isinstance(event, Sample)]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_run_that_is_stopped_gives_what_a_run_of_that_many_steps_gives(model, runs, lora):
    how = {"samples": SAMPLES, "sample_every": 4, "use_lora": lora}
    finished, samples = stopped_and_exported(runs, model, 3, steps=5, **how)
    assert (finished.step, finished.steps, finished.stopped) == (3, 5, True)
    assert samples == [(0, 0), (3, 0)]
    runs.run(model, "short", steps=3, **how)
    short = runs.folder / "short"
    assert finished.weights is not None
    assert finished.weights.read_bytes() == (short / "short-000003.safetensors").read_bytes()
    assert (runs.folder / "run/samples/step-000003-00.png").read_bytes() == (
        short / "samples/step-000003-00.png"
    ).read_bytes()


@pytest.mark.slow
def test_it_goes_on_from_there(kontext, runs):
    stopped_and_exported(runs, kontext, 3, steps=5)
    runs.run(kontext, steps=5)
    runs.run(kontext, "whole", steps=5)
    assert runs.losses() == runs.losses("whole")
    last = [(runs.folder / name / f"{name}-000005.safetensors").read_bytes() for name in ("run", "whole")]
    assert last[0] == last[1]


@pytest.mark.slow
def test_stopped_before_the_first_step_there_is_nothing_to_export(kontext, runs):
    control = RunControl()
    control.stop_and_export()
    finished = list(runs.events(kontext, control=control))[-1]
    assert isinstance(finished, Finished) and finished.weights is None


@pytest.mark.slow
@pytest.mark.parametrize(("family", "lora"), [("kontext", True), ("qwen", False)], ids=["lora", "full"])
def test_any_kept_checkpoint_is_exported_as_a_run_of_that_many_steps_exports(
    request, runs, tmp_path, capsys, family, lora
):
    model = request.getfixturevalue(family)
    how = {"use_lora": lora, "lora_alpha": 8}
    runs.run(model, steps=4, settings={"checkpoint_every": 1}, **how)
    runs.run(model, "short", steps=3, settings={"checkpoint_every": 1}, **how)
    out = tmp_path / "exported.safetensors"
    command = ["export", str(runs.folder / "run"), "--step", "3", "--out", str(out), "--model", str(model.folder)]
    assert main(command) == OK
    assert out.read_bytes() == (runs.folder / "short" / "short-000003.safetensors").read_bytes()
    assert ("--lora" in capsys.readouterr().out) == lora
    newest = export_checkpoint(RunFolder(runs.folder / "run"), model)
    assert newest == runs.folder / "run" / "run-000004.safetensors"


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(kontext, runs, tmp_path, capsys):
    runs.run(kontext, steps=2, settings={"checkpoint_every": 1})
    folder = runs.folder / "run"
    for given, message in (
        ([str(tmp_path / "none")], "is not a run folder: it has no request.json."),
        ([str(folder), "--step", "7"], f"{folder} has no checkpoint of step 7; it has those of 1, 2."),
        ([str(folder), "--step", "-1"], f"{folder} has no checkpoint of step -1; it has those of 1, 2."),
    ):
        assert main(["export", *given, "--model", str(kontext.folder)]) == BAD_INPUT
        assert message in capsys.readouterr().err
    (folder / "checkpoints/step-000001/weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"step-000001 .*checksum.*choose another step"):
        export_checkpoint(RunFolder(folder), kontext, 1, tmp_path / "out")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(BadInput, match="has no checkpoint; it has none"):
        export_checkpoint(RunFolder(folder), kontext)
    assert not Path(tmp_path / "out").exists()
