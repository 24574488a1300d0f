"""Trains with two processes on the CPU: run as a script by test_distributed.py.

One process imports everything and forks pairs of children, because importing takes much longer than training.
Arguments: what to do ("equal" or "ends") and a JSON with the models' folders. Works in the current folder; prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainer.config.request import parse_request
from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.distributed.fsdp import full_tensor
from trainer.distributed.ranks import SingleProcess, launched_processes
from trainer.errors import RunFailed
from trainer.events import Step, drain
from trainer.models import open_model
from trainer.training.loop import train

COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
MODELS: dict[str, str] = {}
"""Folder by base model."""


def run(
    base_model: str,
    name: str,
    ranks: SingleProcess,
    on_step: Callable[[int], None] = lambda step: None,
    shard_base: bool = False,
    **params: Any,
) -> None:
    """A whole run, the gradients of its optimizer steps in `<name>.gradients`."""
    defaults = {"steps": 3, "sample_every": 100, "lora_rank": 4, "lora_alpha": 4, "samples": []}
    params = COLUMNS | {"cache_text_embeddings": True} | defaults | params
    request = {"resource": "pairs.parquet", "base_model": base_model, "script_type": "image_editing"}
    settings = {"save_dtype": "fp32", "max_grad_norm": 0.0, "sample_steps": 2, "checkpoint_every": 2}
    gradients: dict[str, torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
            if parameter.grad is not None:
                key = f"{optimizer.param_groups[0]['lr']:g}.{len(gradients)}.{number}"
                gradients[key] = full_tensor(parameter.grad).detach().clone()

    hook = register_optimizer_step_pre_hook(keep)
    events = train(
        parse_request(request | {"training_params": params}),
        drain(open_dataset(Path("pairs.parquet"), **COLUMNS)),
        open_model(base_model, Path(MODELS[base_model])),
        parse_settings(settings),
        run_dir=Path(name),
        cache_dir=Path("cache"),
        ranks=ranks,
        shard_base=shard_base,
    )
    for event in events:
        if isinstance(event, Step):
            on_step(event.step)
    hook.remove()
    if ranks.main:
        save_file(gradients, f"{name}.gradients")


@dataclass
class Child:
    """One forked process of a pair."""

    pid: int
    output: Path
    began: float

    def result(self) -> dict[str, Any]:
        """Its exit code (negative: the signal), seconds and output."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "seconds": time.monotonic() - self.began, "output": self.output.read_text()}


def start_pair(name: str, work: Callable[[SingleProcess], None]) -> list[Child]:
    """Two processes that are joined and do `work`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(2):
        output = Path(f"{name}-{rank}.txt")
        pid = os.fork()
        if pid == 0:
            file = os.open(output, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            torch.set_num_threads(1)
            with launched_processes() as ranks:
                work(ranks)
            os._exit(0)
        children.append(Child(pid, output, time.monotonic()))
    return children


def equal() -> dict[str, Any]:
    """The same trainings by two processes and by one, for both families."""

    def pairs(ranks: SingleProcess) -> None:
        for base_model, family in families:
            for batch_size in (1, 2):
                run(base_model, f"{family}-{batch_size}-two", ranks, batch_size=batch_size)
            run(base_model, f"{family}-full-two", ranks, use_lora=False)
            run(base_model, f"{family}-base-two", ranks, shard_base=True)
            run(base_model, f"{family}-two-one", ranks, steps=2)

    def resumed(ranks: SingleProcess) -> None:
        for base_model, family in families:
            run(base_model, f"{family}-one-two", ranks)
            run(base_model, f"{family}-full-one-two", ranks, use_lora=False)

    families = [(base_model, base_model.rpartition("/")[2]) for base_model in MODELS]
    first = [child.result() for child in start_pair("pairs", pairs)]
    alone = {"ranks": SingleProcess(), "gradient_accumulation": 2}
    for base_model, family in families:
        for batch_size in (1, 2):
            run(base_model, f"{family}-{batch_size}-one", batch_size=batch_size, **alone)
        run(base_model, f"{family}-full-one", use_lora=False, **alone)
        run(base_model, f"{family}-two-one", **alone)
        run(base_model, f"{family}-one-two", steps=2, **alone)
        run(base_model, f"{family}-full-one-two", steps=2, use_lora=False, **alone)
    return {"pairs": first, "resumed": [child.result() for child in start_pair("resumed", resumed)]}


def ends() -> dict[str, Any]:
    """Pairs that end in all ways but the good one, all at a time, after step 3, of which there is no checkpoint."""
    base_model = next(iter(MODELS))

    def start(name: str, end: Callable[[SingleProcess], None], rank: int, **params: Any) -> list[Child]:
        def work(ranks: SingleProcess) -> None:
            def on_step(step: int) -> None:
                if step == 3 and ranks.rank == rank:
                    end(ranks)

            run(base_model, name, ranks, on_step, **({"steps": 6} | params))

        return start_pair(name, work)

    def raises(ranks: SingleProcess) -> None:
        raise RunFailed("the disk of rank 1 is full")

    def kill(ranks: SingleProcess) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def hang_in_sum(ranks: SingleProcess) -> None:
        torch.distributed.all_reduce = hang  # so that the other one is stuck in its own

    started = {
        "killed-1": start("killed-1", kill, 1),
        "killed-0": start("killed-0", kill, 0),
        "hung-1": start("hung-1", hang, 1),
        "stuck-0": start("stuck-0", hang_in_sum, 1),
        "failed-1": start("failed-1", raises, 1),
        "stopped-1": start("stopped-1", lambda ranks: ranks.local_control.stop(), 1),
        "killed-full": start("killed-full", kill, 1, use_lora=False),
    }
    results = {}
    for name, (one, two) in started.items():
        result = [one.result()]
        if name in ("hung-1", "stuck-0"):
            os.kill(two.pid, signal.SIGKILL)
        results[name] = [*result, two.result()]
    run(base_model, "whole", SingleProcess(), steps=6, gradient_accumulation=2)
    for name in started.keys() - {"killed-full"}:
        run(base_model, name, SingleProcess(), steps=6, gradient_accumulation=2)
    return results


if __name__ == "__main__":
    MODELS.update(json.loads(sys.argv[2]))
    print(json.dumps({"equal": equal, "ends": ends}[sys.argv[1]]()))
