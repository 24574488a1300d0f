"""Training on a CUDA device against the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.cli.main import main
from trainer.tiny.shapes import TAUGHT_EDITS, write_parquet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

ROOT = Path(__file__).resolve().parents[2]


def losses(run: Path) -> list[float]:
    """The losses of a run's log, in order."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("base_model", ["tiny/flux-kontext", "tiny/qwen-image-edit"])
def test_two_steps_on_cuda_lose_what_they_lose_on_the_cpu(base_model: str, tmp_path: Path) -> None:
    request = {
        "resource": str(write_parquet(tmp_path / "pairs.parquet", TAUGHT_EDITS[:1], seed=0, count=4)),
        "base_model": base_model,
        "script_type": "image_editing",
        "training_params": {
            "caption_column": "caption",
            "control_image_column": "control",
            "image_column": "target",
            "batch_size": 2,
            "steps": 2,
            "samples": [],
        },
    }
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request), encoding="utf-8")

    def arguments(name: str) -> list[str]:
        """The command of a run with caches of its own."""
        return [
            "train",
            str(file),
            "--out",
            str(tmp_path / name),
            "--cache",
            str(tmp_path / f"{name} cache"),
            "--precision",
            "fp32",
        ]

    torch.cuda.reset_peak_memory_stats()
    assert main(arguments("cuda")) == 0
    assert torch.cuda.max_memory_allocated() > 0
    subprocess.run(
        [sys.executable, "-m", "trainer", *arguments("cpu")],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        cwd=ROOT,
        check=True,
    )
    on_cuda, on_cpu = losses(tmp_path / "cuda"), losses(tmp_path / "cpu")
    assert len(on_cuda) == len(on_cpu) == 2
    # Sums in another order, and TF32 in cuDNN's convolutions, whose relative precision is 2**-10.
    assert on_cuda == pytest.approx(on_cpu, rel=1e-2)
