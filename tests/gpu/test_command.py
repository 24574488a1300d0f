"""Training on a CUDA device against the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.cli.main import main

from .runs import losses, write_request

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "base_model", ["tiny/flux-kontext", "tiny/qwen-image-edit", "tiny/qwen-image-edit-plus", "tiny/flux2-klein"]
)
def test_two_steps_on_cuda_lose_what_they_lose_on_the_cpu(base_model: str, tmp_path: Path) -> None:
    file = write_request(tmp_path, base_model, steps=2)

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

    on_the_cpu = subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments("cpu")],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        cwd=ROOT,
    )
    torch.cuda.reset_peak_memory_stats()
    try:
        assert main(arguments("cuda")) == 0
    finally:
        exit_code = on_the_cpu.wait()
    assert exit_code == 0
    assert torch.cuda.max_memory_allocated() > 0
    on_cuda, on_cpu = losses(tmp_path / "cuda"), losses(tmp_path / "cpu")
    assert len(on_cuda) == len(on_cpu) == 2
    # Sums in another order, and TF32 in cuDNN's convolutions, whose relative precision is 2**-10.
    assert on_cuda == pytest.approx(on_cpu, rel=1e-2)
