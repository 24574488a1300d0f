"""Several processes: they train as one does, and one that is lost ends the run with everything saved."""

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

from trainer.training.checkpoint import checkpoint_steps

REPO = Path(__file__).parents[2]
FAMILIES = ("flux-kontext", "qwen-image-edit")


def work(what: str, runs, models) -> dict[str, Any]:
    """What `ranks_run.py` has to tell, its folders in `runs.folder`."""
    runs.write()
    folders = {model.base_model: str(model.folder) for model in models}
    command = [sys.executable, "-m", "tests.trainer.ranks_run", what, json.dumps(folders)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=runs.folder, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in runs.folder.glob("*.txt"))
    return json.loads(done.stdout.splitlines()[-1])


def last_weights(runs, name: str, step: int) -> Path:
    return runs.folder / name / f"{name}-{step:06d}.safetensors"


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)


def test_two_processes_train_as_one(kontext, qwen, runs):
    told = work("equal", runs, (kontext, qwen))
    for pair in told.values():
        assert [rank["code"] for rank in pair] == [0, 0], pair
    for family in FAMILIES:
        for two, one in (("1-two", "1-one"), ("2-two", "2-one"), ("full-two", "full-one"), ("base-two", "1-one")):
            one, two = f"{family}-{one}", f"{family}-{two}"
            assert_close(runs.folder / f"{one}.gradients", runs.folder / f"{two}.gradients", 1e-6)
            assert runs.losses(one) == pytest.approx(runs.losses(two), abs=1e-6)
        for kind, full_tensor in (("two-one", "1-one"), ("one-two", "1-one"), ("full-one-two", "full-one")):
            resumed, uninterrupted = f"{family}-{kind}", f"{family}-{full_tensor}"
            assert runs.losses(resumed) == pytest.approx(runs.losses(uninterrupted), abs=1e-6)
            assert_close(last_weights(runs, resumed, 3), last_weights(runs, uninterrupted, 3), 1e-6)


def test_the_loss_of_a_process_is_named_and_loses_nothing(kontext, runs):
    told = work("ends", runs, (kontext,))
    lost = r"Rank {rank} of 2 \(process \d+ on .+\) is lost: .+\n"
    saved = r"The last good checkpoint is .*step-{step:06d}; the same request goes on from there\.\n"
    for name, living, words in (
        ("killed-1", 0, lost.format(rank=1) + saved.format(step=3)),
        ("killed-0", 1, lost.format(rank=0) + saved.format(step=3)),
        ("hung-1", 0, lost.format(rank=1) + saved.format(step=3)),
        ("stuck-0", 0, lost.format(rank=1) + saved.format(step=3)),
        ("failed-1", 0, r"Rank 1 of 2 \(.+\) failed: the disk of rank 1 is full\n" + saved.format(step=3)),
        ("killed-full", 0, lost.format(rank=1) + saved.format(step=2)),
    ):
        survivor, other = told[name][living], told[name][1 - living]
        assert re.search(f"^error: {words}\\Z", survivor["output"], re.MULTILINE), (name, survivor["output"])
        assert survivor["code"] == 1
        assert survivor["seconds"] < 60
        assert "error" not in other["output"]
    assert [rank["code"] for rank in told["stopped-1"]] == [0, 0], told["stopped-1"]
    for name in told.keys() - {"killed-full"}:
        assert runs.losses(name) == pytest.approx(runs.losses("whole"), abs=1e-6)
        assert_close(last_weights(runs, name, 6), last_weights(runs, "whole", 6), 1e-6)


def launched(launcher: list[str], request: Path, out: Path) -> subprocess.Popen[str]:
    """`train` under a launcher that starts two processes."""
    command = [sys.executable, "-m", *launcher, "-m", "trainer", "train", str(request), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def written_request(runs, model, **params: Any) -> Path:
    runs.write()
    path = runs.folder / "request.json"
    path.write_text(runs.request(model, **params).model_dump_json())
    return path


def test_a_bad_request_is_said_once(kontext, runs):
    request = written_request(runs, kontext)
    request.write_text(request.read_text().replace('"words"', '"nowhere"'))
    told, _ = launched(["torch.distributed.run", "--nproc-per-node=2"], request, runs.folder / "run").communicate()
    assert told.count("error: The request has 1 fault:") == 1
    assert told.count('"nowhere" is not a column') == 1
    assert "trainer/" not in told
    assert told.count("exitcode  : 2") == 2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="which process has which rank is read in /proc")
def test_a_process_killed_under_a_launcher_is_named(kontext, runs):
    request, out = written_request(runs, kontext, steps=100_000, sample_every=100_000), runs.folder / "run"
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    training = launched([*launcher, "--mixed_precision=no", "--dynamo_backend=no"], request, out)
    deadline = time.monotonic() + 120
    try:
        while not ((out / "log.jsonl").exists() and len(runs.losses()) > 3) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(process_of_rank(0, training.pid), signal.SIGKILL)
    except BaseException:
        training.terminate()
        raise
    killed = time.monotonic()
    told, _ = training.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    (step,) = checkpoint_steps(out / "checkpoints")
    assert step == len(runs.losses())
    last = f"The last good checkpoint is {out}/checkpoints/step-{step:06d}; the same request goes on from there."
    assert re.search(rf"error: Rank 0 of 2 \(process \d+ on .+\) is lost: .+\n{re.escape(last)}\n", told), told
    assert training.returncode == 1


def process_of_rank(rank: int, launcher: int) -> int:
    """The child of the launcher that has the rank."""
    for process in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
        if f"RANK={rank}\0" in Path(f"/proc/{process}/environ").read_text().replace("LOCAL_RANK", ""):
            return process
    raise AssertionError(f"no process has rank {rank}")
