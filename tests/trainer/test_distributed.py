"""Several processes: they train as one does, stop at the same step, and resume after one of them is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.training.checkpoint import last_step
from trainer.training.run_folder import RunFolder

from .processes import Script, start_script
from .test_tracking import read_events

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[2]
FAMILIES = ("flux-kontext", "qwen-image-edit")
SAME = (("1-two", "1-one"), ("full-two", "full-one"), ("base-two", "1-one"))
"""Runs of both families that are the same run."""
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
ACCELERATE += ("--mixed_precision=no", "--dynamo_backend=no")


def two_processes(what: str, runs, models) -> dict[str, Any]:
    """The result of `two_processes.py`, which works in `runs.folder`."""
    runs.write()
    folders = {model.base_model: str(model.folder) for model in models}
    script = start_script("tests.trainer.two_processes", what, json.dumps(folders), cwd=runs.folder)
    code, stdout, stderr = script.wait()
    assert code == 0, stderr + "".join(path.read_text() for path in runs.folder.glob("*.txt"))
    return json.loads(stdout.splitlines()[-1])


def last_weights(runs, name: str, step: int) -> Path:
    return runs.folder / name / f"{name}-{step:06d}.safetensors"


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)


def test_two_processes_train_as_one(kontext, qwen, runs):
    for pair in two_processes("equal", runs, (kontext, qwen)).values():
        assert [rank["code"] for rank in pair] == [0, 0], pair
    same = [(family, *pair) for family in FAMILIES for pair in SAME] + [(FAMILIES[0], "2-two", "2-one")]
    for family, two, one in same:
        one, two = f"{family}-{one}", f"{family}-{two}"
        assert_close(runs.folder / f"{one}.gradients", runs.folder / f"{two}.gradients", 1e-6)
        assert runs.losses(one) == pytest.approx(runs.losses(two), abs=1e-6)
    for kind, other in (("two-one", "1-one"), ("one-two", "1-one"), ("full-one-two", "full-one")):
        resumed, uninterrupted = f"{FAMILIES[0]}-{kind}", f"{FAMILIES[0]}-{other}"
        assert runs.losses(resumed) == pytest.approx(runs.losses(uninterrupted), abs=1e-6)
        assert_close(last_weights(runs, resumed, 3), last_weights(runs, uninterrupted, 3), 1e-6)


def test_asking_one_process_to_stop_stops_all_at_the_same_step_and_saves(kontext, runs):
    pair = two_processes("stopped", runs, (kontext,))["stopped"]
    assert [rank["code"] for rank in pair] == [0, 0], pair
    saved = re.findall(r"checkpoints: (.*)", "".join(rank["output"] for rank in pair))
    assert saved == ["['step-000002', 'step-000004']"] * 2  # both were in step 4 when the request was shared
    assert runs.losses("stopped") == pytest.approx(runs.losses("uninterrupted"), abs=1e-6)
    assert_close(last_weights(runs, "stopped", 6), last_weights(runs, "uninterrupted", 6), 1e-6)


def test_two_processes_measure_the_held_out_loss_that_one_does(kontext, runs):
    pair = two_processes("held_out", runs, (kontext,))["held_out"]
    assert [rank["code"] for rank in pair] == [0, 0], pair
    curves = {name: RunFolder(runs.folder / name).validation_losses() for name in ("one", "two", "uncached", "sharded")}
    assert [step for step, _ in curves["one"]] == [0, 1, 2, 3]
    assert curves["two"][0] == curves["uncached"][0] == curves["one"][0], "equal weights, equal numbers"
    assert curves["sharded"][0][1] == pytest.approx(curves["one"][0][1], abs=1e-6)
    for name in ("two", "uncached", "sharded"):
        assert [loss for _, loss in curves[name]] == pytest.approx([loss for _, loss in curves["one"]], abs=1e-6)
    assert last_step(runs.folder / "two" / "checkpoints") == 3


def launch(launcher: tuple[str, ...], request: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start `train` under a launcher of two processes."""
    command = [sys.executable, "-m", *launcher, "-m", "trainer", "train", str(request), "--out", str(out), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def written_request(runs, model, **params: Any) -> Path:
    runs.write()
    path = runs.folder / "request.json"
    path.write_text(runs.request(model, **params).model_dump_json())
    return path


def test_a_bad_request_is_reported_once(kontext, runs):
    request = written_request(runs, kontext)
    request.write_text(request.read_text().replace('"words"', '"nowhere"'))
    printed, _ = launch(ACCELERATE, request, runs.folder / "run").communicate(timeout=120)
    assert printed.count("error: The request has 1 fault:") == 1
    assert printed.count('"nowhere" is not a column') == 1
    assert "trainer/" not in printed
    assert "exitcode  : 2" in printed


def test_a_killed_process_restarts_all_from_the_last_checkpoint(kontext, runs):
    request = written_request(runs, kontext, steps=12, sample_every=100)

    def launched(name: str, restarts: int) -> Script:
        arguments = (restarts, request, "--out", runs.folder / name, "--checkpoint-every", 4)
        arguments += ("--log-with", "tensorboard")
        return start_script("tests.trainer.launched_train", *arguments, cwd=runs.folder)

    code, *printed = launched("undisturbed", 0).wait()
    assert code == 0, printed

    training = launched("killed", 1)
    wait_until(lambda: last_step(runs.folder / "killed" / "checkpoints") >= 4)
    os.kill(int((runs.folder / "rank-1.pid").read_text()), signal.SIGKILL)
    code, *printed = training.wait()
    assert code == 0, printed
    assert re.search(r"Continuing from step [48] ", "".join(printed)), printed
    exported = last_weights(runs, "killed", 12).read_bytes()
    assert exported == last_weights(runs, "undisturbed", 12).read_bytes()
    assert runs.losses("killed") == runs.losses("undisturbed")
    for name, starts in (("undisturbed", 1), ("killed", 2)):
        folder = runs.folder / name / "tensorboard"
        assert len(list(folder.iterdir())) == starts, "only one process logs"
        assert [event.step for event in read_events(folder).Scalars("train/loss")] == list(range(1, 13))


def wait_until(reached, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)
