"""Runs `train` in two processes under the agent that torchrun runs: as a script by test_distributed.py.

The processes are forked from this one, which has imported everything; torchrun's own would each import for ten seconds.
Arguments: the number of restarts, then those of `train`. Each process writes its number to rank-<rank>.pid in the
current folder; one that may be restarted trains slowly, as it is to be killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.cli.main import main
from trainer.training import loop

from .processes import train_slowly

assert loop  # imported before the fork


def train(*arguments: str) -> None:
    """Train in one process of the group."""
    Path(f"rank-{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] < os.environ["TORCHELASTIC_MAX_RESTARTS"]:
        train_slowly()
    if code := main(["train", *arguments]):
        raise SystemExit(code)


def main_script() -> None:
    restarts, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=int(restarts),
        start_method="fork",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="train",
        monitor_interval=0.1,
    )
    elastic_launch(config, train)(*arguments)


if __name__ == "__main__":
    main_script()
