"""A run of Weights & Biases. Only whoever starts the program asks for it: see `trackers.open_trackers`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from ..config.packages import require_package
from ..config.public import Parameter
from ..errors import BadInput, RunFailed
from ..events import Sample
from ..files import write_text
from ..training.run_folder import RunFolder

if TYPE_CHECKING:
    import wandb

REQUIREMENT = "wandb>=0.31"
"""As in pyproject.toml. From this version on a login can be looked for without asking on the terminal."""

PROJECT = "edit-trainer"
"""Project of the runs unless WANDB_PROJECT names another."""

FINISH_SECONDS = 120
"""Longest wait for what is still to be sent at the end of a run; a judgement. `wandb sync` sends the rest."""

_PRIVATE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""Settings of wandb that keep the terminal's text, the command line, paths, the host's name and the list of installed
packages from being sent. A version that lacks one of them starts no run."""


class WandbLog:
    """Logs a run to Weights & Biases, whose own environment variables count: WANDB_MODE, WANDB_PROJECT and so on."""

    name = "Weights & Biases"

    def __init__(self, feature: str) -> None:
        """Raises BadInput, saying that `feature` needs it, when wandb is not installed or nobody is logged in."""
        wandb = require_package(REQUIREMENT, feature)
        if tuple(map(int, wandb.__version__.split(".")[:2])) < (0, 31):
            raise BadInput(f'{feature} needs a newer wandb: run `python -m pip install "{REQUIREMENT}"`.')
        self._mode = wandb.setup().settings.mode
        if self._mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise BadInput(
                f"{feature} needs a login at Weights & Biases: run `wandb login`, or set WANDB_API_KEY; with "
                "WANDB_MODE=offline nothing is sent."
            )
        self._run: wandb.Run | None = None

    def start(self, run: RunFolder, first_step: int, parameters: Mapping[str, Parameter]) -> None:
        """Start a run, or go on with that of the run folder; Weights & Biases ignores steps that it has already.

        Raises RunFailed when it cannot be started.
        """
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=os.environ.get("WANDB_NAME") or run.path.name,
                dir=str(run.path),
                id=_run_id(run),
                resume="allow" if self._mode == "online" else None,
                config=dict(parameters),
                settings=wandb.Settings(**_PRIVATE, finish_timeout=FINISH_SECONDS),
            )
        except Exception as error:  # wandb raises errors of many kinds, also of its service and of the network.
            raise RunFailed(f"Weights & Biases did not start the run: {error}") from None

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def log_sample(self, sample: Sample) -> None:
        """Log a sample image with its prompt as the caption."""
        import wandb

        if self._run is not None:
            image = wandb.Image(sample.image, caption=sample.prompt)
            self._run.log({f"samples/{sample.index:02d}": image}, step=sample.step)

    def close(self, failed: bool) -> None:
        """End the run, when what was logged is sent or FINISH_SECONDS have passed."""
        if self._run is not None:
            self._run.finish(exit_code=1 if failed else 0)


def _run_id(run: RunFolder) -> str:
    """Id of the folder's run at Weights & Biases, made when there is none yet."""
    path = run.path / "wandb" / "run-id.txt"
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    if not found.isalnum():
        found = token_hex(4)
        write_text(path, found)
    return found
