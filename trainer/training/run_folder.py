"""Run folder: its files, and the run that it belongs to.

request.json  settings.json  log.jsonl  samples/  checkpoints/  <name>-<step>.safetensors  run.json  run.lock

Whatever in it is damaged, of another run or of a later release is handled by the rules in docs/run-folder.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..errors import BadInput, DamagedFile, RunFailed
from ..files import (
    TEMPORARY_PREFIX,
    atomic_write,
    probe,
    read_json,
    remove_unfinished,
    temporary_beside,
    write_json,
)
from .checkpoint import checkpoint_folders, last_step, read_state
from .run_log import read_log
from .run_state import EXPORTED_BESIDE, UNKNOWN, is_count, read_run_state, write_run_state

LOG = "log.jsonl"

BEST_WEIGHTS, AVERAGED_WEIGHTS = "-best", "-ema"
"""Ends of the names of the weights with the lowest held-out loss, and of the averaged ones; those of the averaged
weights at the step of that loss end in both."""

_SAMPLE = re.compile(r"step-([0-9]{6,18})-([0-9]{2,18})\.png")


def run_fingerprint(
    request: FineTuneRequest, settings: RunSettings, dataset: str, model: Sequence[str], world_size: int = 1
) -> str:
    """Hexadecimal SHA-256 of everything that determines a run's losses.

    `dataset` is the dataset's fingerprint; `model` has those of the model's components and of the initial LoRA.
    `world_size` processes count as one process that accumulates all their micro-batches.
    """
    params = request.training_params.recorded_for_training()
    state = {
        "base_model": request.base_model,
        "request": params | {"gradient_accumulation": params["gradient_accumulation"] * world_size},
        "settings": settings.recorded_for_training(),
        "dataset": dataset,
        "model": list(model),
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Folder of one run. Only one of several processes writes; in the others the writing methods do nothing."""

    path: Path
    writes: bool = True

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of the sample images."""
        return self.path / "samples"

    @property
    def log(self) -> Path:
        """Log file, one JSON object a line."""
        return self.path / LOG

    def state(self) -> dict[str, Any]:
        """Read run.json: fingerprint, steps, finished_step, weights, and how the run computes (see ARITHMETIC; old runs
        have precision alone). Empty for a folder without a run.

        Where it is missing or damaged, the newest checkpoint says which run it is; UNKNOWN is the fingerprint of a run
        whose checkpoints or weights are there, but do not say. Raises BadInput for the format of a later release.
        """
        try:
            return read_run_state(self.path / "run.json")
        except (FileNotFoundError, DamagedFile):
            return self._state_of_checkpoints()

    def _state_of_checkpoints(self) -> dict[str, Any]:
        folders = checkpoint_folders(self.checkpoints)
        for path in reversed(folders):
            with suppress(DamagedFile):
                return {"fingerprint": UNKNOWN, **read_state(path)["run"]}
        return {"fingerprint": UNKNOWN} if folders or any(self.path.glob("*.safetensors")) else {}

    def planned_steps(self) -> int | None:
        """Return the number of steps that the run here was started with last; None when nothing says it."""
        with suppress(FileNotFoundError, DamagedFile, KeyError, TypeError):
            # Earlier releases have it in the request alone.
            steps = self.state().get("steps") or read_json(self.path / "request.json")["training_params"]["steps"]
            return steps if is_count(steps) else None
        return None

    def damage(self) -> str | None:
        """Say what is wrong with run.json, in words that follow its name; None for another or no file."""
        try:
            read_run_state(self.path / "run.json")
        except DamagedFile as error:
            return str(error)
        except (FileNotFoundError, BadInput):
            return None
        return None

    def accepts(self, fingerprint: str, steps: int) -> bool:
        """Tell whether a run with this fingerprint and `steps` can start, resume or has finished in this folder.

        Raises BadInput for a folder without a run that has files which a run would overwrite, and for this run in the
        format of a later release.
        """
        try:
            state = self.state()
        except BadInput:
            if read_json(self.path / "run.json").get("fingerprint") != fingerprint:
                return False
            raise
        if not state:
            self._check_foreign_files()
            return True
        if state["fingerprint"] != fingerprint:
            return False
        return self.finished_weights(steps) is not None or last_step(self.checkpoints) <= steps

    def adopt(self, fingerprint: str) -> None:
        """Rewrite the fingerprint of a run here that an earlier version has recorded by another rule."""
        state = self.state()
        if self.writes and state and state["fingerprint"] != fingerprint:
            self._write_state({"fingerprint": fingerprint})

    def _check_foreign_files(self) -> None:
        """Raise BadInput for files of somebody's own. A damaged run.json shows that they are of a run."""
        names = ["request.json", "settings.json", LOG]
        if (self.path / "run.json").exists():
            try:
                state = read_json(self.path / "run.json")
            except DamagedFile:
                return
            names = ["run.json"] if isinstance(state, dict) and "fingerprint" not in state else []
        for name in names:
            if (self.path / name).exists():
                raise BadInput(
                    f"{self.path} already has a {name}, which is of no run and would be overwritten. Name another "
                    "folder for the run, or move that file away."
                )

    def begin(self, request: FineTuneRequest, settings: RunSettings, identity: Mapping[str, str]) -> None:
        """Create the folder, or reuse it, for this request; `identity` is that of its checkpoints.

        Raises BadInput when it cannot be created and RunFailed when it cannot be written.
        """
        if not self.writes:
            return
        self._check_names(request.training_params.steps)
        for folder in (self.path, self.checkpoints, self.samples):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"Cannot create the run folder {folder}: {error.strerror or error}.") from None
            remove_unfinished(folder)
        # First: a folder with the files below but without it would count as somebody's own.
        self._write_state({**identity, "steps": request.training_params.steps})
        write_json(self.path / "request.json", request.model_dump())
        write_json(self.path / "settings.json", settings.model_dump())

    def _check_names(self, steps: int) -> None:
        """Raise BadInput when the disk does not take the longest names that the run will write."""
        weights = self.weights_path(steps)
        for path in (
            self.path / f"{TEMPORARY_PREFIX}{weights.name[: -len(TEMPORARY_PREFIX)]}",  # as long as the weights' name
            temporary_beside(self.checkpoints / "step") / "optimizer.safetensors",
        ):
            if (error := probe(path)) is not None:
                raise BadInput(
                    f"The run cannot write files in {self.path}: {error.strerror or error}. Its longest file name, "
                    f"{weights.name}, has {len(os.fsencode(weights.name))} bytes; if that is the reason, choose a "
                    "shorter name for the run."
                )

    def _write_state(self, changes: Mapping[str, Any]) -> None:
        write_run_state(self.path / "run.json", {**self.state(), **changes})

    def control_path(self, index: int, number: int = 0) -> Path:
        """Return the file of one of a sample's control images, numbered from 0."""
        return self.samples / (f"control-{index:02d}-{number + 1}.png" if number else f"control-{index:02d}.png")

    def control_files(self, index: int) -> list[Path]:
        """Return the existing files of a sample's control images, in order."""
        return list(takewhile(Path.is_file, (self.control_path(index, number) for number in count())))

    def sample_path(self, step: int, index: int) -> Path:
        """Return the file of a sample image."""
        return self.samples / f"step-{step:06d}-{index:02d}.png"

    def sample_files(self) -> dict[int, dict[int, Path]]:
        """Existing sample images by step, then by index, both in order. Other names are ignored."""
        files: dict[int, dict[int, Path]] = {}
        names = ((_SAMPLE.fullmatch(file.name), file) for file in self.samples.glob("step-*.png"))
        for step, index, file in sorted((int(name[1]), int(name[2]), file) for name, file in names if name):
            files.setdefault(step, {})[index] = file
        return files

    def weights_path(self, step: int, kind: str = "") -> Path:
        """Return the file of the weights exported at a step; `kind` is that of weights which are exported beside them,
        such as BEST_WEIGHTS."""
        return self.path / f"{self.path.name}-{step:06d}{kind}.safetensors"

    def finish(self, step: int, exported: Mapping[str, Path]) -> None:
        """Record that all steps are done, and the exported files by field of run.json: weights, and those of
        EXPORTED_BESIDE."""
        if self.writes:
            self._write_state({"finished_step": step, **{field: path.name for field, path in exported.items()}})

    def finished_weights(self, steps: int) -> Path | None:
        """Return the exported weights if exactly `steps` steps are done and the file exists."""
        state = self.state()
        if state.get("finished_step") != steps or not (self.path / state["weights"]).is_file():
            return None
        return self.path / state["weights"]

    def exported_beside(self) -> dict[str, Path]:
        """Return the files that a finished run has exported beside its weights, by their fields of EXPORTED_BESIDE, as
        far as they are there."""
        state = self.state()
        paths = {field: self.path / state[field] for field in EXPORTED_BESIDE if field in state}
        return {field: path for field, path in paths.items() if path.is_file()}

    def append_log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl. Raises RunFailed when the disk refuses."""
        if not self.writes:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFailed(f"Cannot write {self.log}: {error.strerror or error}.") from error

    def cut_log(self, step: int) -> int:
        """Drop the log's lines after `step`, and a last line that a crash has cut short.

        Returns the number of other lines that were dropped because they cannot be read.
        """
        if not self.writes:
            return 0
        lines, unreadable = read_log(self.log)
        with atomic_write(self.log) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["step"] <= step)
        return unreadable

    def losses(self) -> list[tuple[int, float]]:
        """Return step and loss of every step in the log."""
        return self._logged("step")

    def validation_losses(self) -> list[tuple[int, float]]:
        """Return step and held-out loss of every measurement in the log."""
        return self._logged("validation")

    def _logged(self, event: str) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in read_log(self.log)[0] if line["event"] == event]
