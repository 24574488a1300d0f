"""Several processes: they train as one does, and one that is lost ends the run with everything saved."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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
        for kind in ("1", "2", "full"):
            one, two = f"{family}-{kind}-one", f"{family}-{kind}-two"
            assert_close(runs.folder / f"{one}.gradients", runs.folder / f"{two}.gradients", 1e-6)
            assert runs.losses(one) == pytest.approx(runs.losses(two), abs=1e-6)
        for kind, whole in (("two-one", "whole"), ("one-two", "whole"), ("full-one-two", "full-whole")):
            resumed, uninterrupted = f"{family}-{kind}", f"{family}-{whole}"
            assert runs.losses(resumed) == pytest.approx(runs.losses(uninterrupted), abs=1e-6)
            assert_close(last_weights(runs, resumed, 4), last_weights(runs, uninterrupted, 4), 1e-6)


def test_the_loss_of_a_process_is_named_and_loses_nothing(kontext, runs):
    told = work("ends", runs, (kontext,))
    lost = r"Rank {rank} of 2 \(process \d+ on .+\) is lost: .+\n"
    saved = r"The last good checkpoint is .*step-{step:06d}; the same request goes on from there\.\n"
    for name, living, words in (
        ("killed-1", 0, lost.format(rank=1) + saved.format(step=3)),
        ("killed-0", 1, lost.format(rank=0) + saved.format(step=3)),
        ("hung-1", 0, lost.format(rank=1) + saved.format(step=3)),
        ("failed-1", 0, r"Rank 1 of 2 \(.+\) failed: the disk of rank 1 is full\n" + saved.format(step=3)),
        ("killed-full", 0, lost.format(rank=1) + saved.format(step=2)),
    ):
        survivor, other = told[name][living], told[name][1 - living]
        assert re.search(f"^error: {words}\\Z", survivor["output"], re.MULTILINE), (name, survivor["output"])
        assert survivor["code"] == 1
        assert survivor["seconds"] < 60
        assert "error" not in other["output"]
    assert [rank["code"] for rank in told["stopped-1"]] == [0, 0], told["stopped-1"]
    for name in ("killed-1", "killed-0", "hung-1", "failed-1", "stopped-1"):
        assert runs.losses(name) == pytest.approx(runs.losses("whole"), abs=1e-6)
        assert_close(last_weights(runs, name, 6), last_weights(runs, "whole", 6), 1e-6)
