"""Runs a module as a script in a process that begins with everything imported: the imports take ten seconds, which is
longer than most of what such a test looks at."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(
    [
        "trainer.cli.main",
        "trainer.training.loop",
        "diffusers.models.transformers.transformer_flux",
        "diffusers.models.transformers.transformer_qwenimage",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
        "peft.tuners.lora",
    ]
)


@dataclass
class Script:
    """A running script; what it prints goes to files."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    def wait(self, seconds: float = 400.0) -> tuple[int, str, str]:
        """Wait for its end: the exit code, negative for a signal's number, and what it printed to stdout and stderr."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise TimeoutError(f"{self.process.name} still ran after {seconds:.0f} s:\n{self.stderr.read_text()}")
        return code, self.stdout.read_text(), self.stderr.read_text()


def start_script(module: str, *arguments: object, cwd: Path | None = None) -> Script:
    """Start `python -m MODULE ARGUMENTS` in `cwd`."""
    folder = Path(tempfile.mkdtemp(prefix="script-"))
    out, err = folder / "stdout", folder / "stderr"
    for path in (out, err):
        path.touch()
    command = [module, *map(str, arguments)]
    process = CONTEXT.Process(target=_run, args=(command, cwd or Path.cwd(), out, err), name=module)
    process.start()
    return Script(process, out, err)


def train_slowly() -> None:
    """Give each step of this process's runs a fifth of a second, so that a signal never comes after the last one."""
    from trainer.training import loop

    step = loop.micro_step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return step(*arguments)

    loop.micro_step = slow


def run_script(module: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run a script to its end, which must be a good one; what it printed to stdout."""
    code, stdout, stderr = start_script(module, *arguments, cwd=cwd).wait()
    assert code == 0, stdout + stderr
    return stdout


def _run(command: list[str], cwd: Path, out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(cwd)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
