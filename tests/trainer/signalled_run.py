"""Runs `train` in child processes that get signals: run as a script by test_signals.py.

One process imports everything and forks a child for each run, because importing takes much longer than training.
Arguments: request, run folder, signal numbers. For each signal a child runs until its log has another step and is
signalled; a last one runs to the end. Prints the exit codes as JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from trainer.cli.main import main
from trainer.training import loop

from .processes import train_slowly

assert loop  # imported before the fork


def run(request: Path, folder: Path, slow: bool = False) -> int:
    """Start a child that trains; its process id."""
    child = os.fork()
    if child == 0:
        if slow:
            train_slowly()
        torch.set_num_threads(1)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored, and `train` leaves it so.
        os._exit(main(["train", str(request), "--out", str(folder), "--sample-steps", "2"]))
    return child


def steps_logged(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text(encoding="utf-8").count('"event": "step"') if log.is_file() else 0


def ended(child: int) -> int:
    """The exit code of a child, as a shell has it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def main_script() -> None:
    request, folder, *signals = sys.argv[1:]
    codes = []
    for number in map(int, signals):
        before, child = steps_logged(Path(folder)), run(Path(request), Path(folder), slow=True)
        deadline = time.monotonic() + 60
        while steps_logged(Path(folder)) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child, number)
        codes.append(ended(child))
    codes.append(ended(run(Path(request), Path(folder))))
    print(json.dumps(codes))


if __name__ == "__main__":
    main_script()
