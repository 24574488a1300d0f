"""Trains with two processes on the CPU: run as a script by test_distributed.py.

One process imports everything and forks pairs of children, because importing takes much longer than training.
Arguments: "equal", "stopped" or "held_out", and a JSON object with the models' folders. Works in the current folder;
prints JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainer.config.columns import Columns
from trainer.config.request import parse_request
from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.distributed.fsdp import full_tensor
from trainer.distributed.processes import SingleProcess, launched_processes
from trainer.events import Step, drain
from trainer.models.edit_model import open_model
from trainer.training import setup
from trainer.training.loop import train

COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
MODELS: dict[str, str] = {}
"""Folder by base model."""


def run(
    base_model: str,
    name: str,
    processes: SingleProcess,
    on_step: Callable[[int], None] = lambda step: None,
    settings: dict[str, Any] | None = None,
    **params: Any,
) -> None:
    """Run a training to its end; the gradients of its optimizer steps go to `<name>.gradients`."""
    defaults = {"steps": 3, "sample_every": 100, "lora_rank": 4, "lora_alpha": 4, "samples": []}
    params = COLUMNS | {"cache_text_embeddings": True} | defaults | params
    request = {"resource": "pairs.parquet", "base_model": base_model, "script_type": "image_editing"}
    options = {"save_dtype": "fp32", "max_grad_norm": 0.0, "sample_steps": 2, "checkpoint_every": 2}
    gradients: dict[str, torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
            if parameter.grad is not None:
                key = f"{optimizer.param_groups[0]['lr']:g}.{len(gradients)}.{number}"
                gradients[key] = full_tensor(parameter.grad).detach().clone()

    hook = register_optimizer_step_pre_hook(keep)
    events = train(
        parse_request(request | {"training_params": params}),
        drain(open_dataset(Path("pairs.parquet"), Columns.from_fields(COLUMNS))),
        open_model(base_model, Path(MODELS[base_model])),
        parse_settings(options | (settings or {})),
        run_dir=Path(name),
        cache_dir=Path("cache"),
        processes=processes,
    )
    for event in events:
        if isinstance(event, Step):
            on_step(event.step)
    hook.remove()
    if processes.is_main:
        save_file(gradients, f"{name}.gradients")


@contextmanager
def sharded_base():
    """Context in which plans shard the frozen base, as they do when it does not fit one device."""
    real = setup.joint_plan
    with patch.object(setup, "joint_plan", lambda *arguments: replace(real(*arguments), sharded=True)):
        yield


@dataclass
class Child:
    """One forked process of a pair."""

    pid: int
    output: Path

    def result(self) -> dict[str, Any]:
        """Wait for its end; its exit code (negative: the signal) and output."""
        _, status = os.waitpid(self.pid, 0)
        return {"code": os.waitstatus_to_exitcode(status), "output": self.output.read_text()}


def start_pair(name: str, work: Callable[[SingleProcess], None]) -> list[Child]:
    """Start two processes that form a group and do `work`."""
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
            with launched_processes() as processes:
                work(processes)
            os._exit(0)
        children.append(Child(pid, output))
    return children


def equal() -> dict[str, Any]:
    """The same trainings by two processes and by one, for both families. What sees no weights, batches and resuming,
    for the first alone."""

    def pairs(processes: SingleProcess) -> None:
        for base_model, family in families:
            run(base_model, f"{family}-1-two", processes)
            run(base_model, f"{family}-full-two", processes, use_lora=False)
            with sharded_base():
                run(base_model, f"{family}-base-two", processes)
        run(first_model, f"{first_family}-2-two", processes, batch_size=2)
        run(first_model, f"{first_family}-two-one", processes, steps=2)

    def resumed(processes: SingleProcess) -> None:
        run(first_model, f"{first_family}-one-two", processes)
        run(first_model, f"{first_family}-full-one-two", processes, use_lora=False)

    families = [(base_model, base_model.rpartition("/")[2]) for base_model in MODELS]
    first_model, first_family = families[0]
    first = [child.result() for child in start_pair("pairs", pairs)]
    alone = {"processes": SingleProcess(), "gradient_accumulation": 2}
    for base_model, family in families:
        run(base_model, f"{family}-1-one", **alone)
        run(base_model, f"{family}-full-one", use_lora=False, **alone)
    run(first_model, f"{first_family}-2-one", batch_size=2, **alone)
    run(first_model, f"{first_family}-two-one", **alone)
    run(first_model, f"{first_family}-one-two", steps=2, **alone)
    run(first_model, f"{first_family}-full-one-two", steps=2, use_lora=False, **alone)
    return {"pairs": first, "resumed": [child.result() for child in start_pair("resumed", resumed)]}


def stopped() -> dict[str, Any]:
    """A pair of which one is asked to stop after step 3, where no checkpoint is due; then one process resumes."""
    base_model = next(iter(MODELS))

    def work(processes: SingleProcess) -> None:
        def on_step(step: int) -> None:
            if step == 3 and processes.rank == 1:
                processes.local_control.stop()

        run(base_model, "stopped", processes, on_step, steps=6)
        print("checkpoints:", sorted(path.name for path in Path("stopped/checkpoints").iterdir()))

    result = [child.result() for child in start_pair("stopped", work)]
    run(base_model, "stopped", SingleProcess(), steps=6, gradient_accumulation=2)
    run(base_model, "uninterrupted", SingleProcess(), steps=6, gradient_accumulation=2)
    return {"stopped": result}


def held_out() -> dict[str, Any]:
    """Held-out losses of runs that begin with one LoRA, by two processes and by one."""
    start = {"init_lora": "start/start-000003.safetensors", "validation_rows": 3.0, "validate_every": 1}

    def work(processes: SingleProcess) -> None:
        run(base_model, "two", processes, settings=start)
        run(base_model, "uncached", processes, settings=start, cache_text_embeddings=False)
        with sharded_base():
            run(base_model, "sharded", processes, settings=start)

    base_model = next(iter(MODELS))
    run(base_model, "start", SingleProcess(), learning_rate=0.01)
    pair = [child.result() for child in start_pair("held_out", work)]
    run(base_model, "one", SingleProcess(), settings=start, gradient_accumulation=2)
    return {"held_out": pair}


if __name__ == "__main__":
    MODELS.update(json.loads(sys.argv[2]))
    print(json.dumps({"equal": equal, "stopped": stopped, "held_out": held_out}[sys.argv[1]]()))
