"""Run folder: its files, the run it belongs to, and where an interrupted run is found again.

request.json  settings.json  log.jsonl  samples/  checkpoints/  <name>-<step>.safetensors  run.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..errors import BadInput, RunFailed
from ..files import atomic_write, remove_unfinished, write_json
from .checkpoint import last_step


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
        return self.path / "log.jsonl"

    def state(self) -> dict[str, Any]:
        """Read run.json: fingerprint, finished_step, weights, and how the run computes (precision, dtype,
        quantize_activations, compile; old runs have precision alone). Empty for a folder without a run.

        Raises RunFailed when it is damaged.
        """
        try:
            state = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            return state if "fingerprint" in state else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise RunFailed(
                f"{self.path / 'run.json'} is damaged ({error}). Delete it to start a new run in this folder."
            ) from None

    def accepts(self, fingerprint: str, steps: int) -> bool:
        """Tell whether a run with this fingerprint and `steps` can start, resume or has finished in this folder."""
        state = self.state()
        if not state:
            return True
        if state["fingerprint"] != fingerprint:
            return False
        return self.finished_weights(steps) is not None or last_step(self.checkpoints) <= steps

    def adopt(self, fingerprint: str) -> None:
        """Rewrite the fingerprint of a run here that an earlier version has recorded by another rule."""
        state = self.state()
        if self.writes and state and state["fingerprint"] != fingerprint:
            write_json(self.path / "run.json", {**state, "fingerprint": fingerprint})

    def begin(
        self, request: FineTuneRequest, settings: RunSettings, fingerprint: str, arithmetic: Mapping[str, str]
    ) -> None:
        """Create the folder, or reuse it, for this request; `arithmetic` is how it computes, see `setup.arithmetic_of`.

        Raises BadInput when it cannot be created and RunFailed when it cannot be written.
        """
        if not self.writes:
            return
        for folder in (self.path, self.checkpoints, self.samples):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"Cannot create the run folder {folder}: {error.strerror or error}.") from None
            remove_unfinished(folder)
        write_json(self.path / "request.json", request.model_dump())
        write_json(self.path / "settings.json", settings.model_dump())
        write_json(self.path / "run.json", {**self.state(), "fingerprint": fingerprint, **arithmetic})

    def control_path(self, index: int) -> Path:
        """Return the file of a sample's control image."""
        return self.samples / f"control-{index:02d}.png"

    def sample_path(self, step: int, index: int) -> Path:
        """Return the file of a sample image."""
        return self.samples / f"step-{step:06d}-{index:02d}.png"

    def sample_files(self) -> dict[int, dict[int, Path]]:
        """Existing sample images by step, then by index, both in order."""
        files: dict[int, dict[int, Path]] = {}
        numbered = (
            ([int(part) for part in file.stem.split("-")[1:]], file) for file in self.samples.glob("step-*.png")
        )
        for (step, index), file in sorted(numbered):
            files.setdefault(step, {})[index] = file
        return files

    def weights_path(self, step: int) -> Path:
        """Return the file of the weights exported at a step."""
        return self.path / f"{self.path.name}-{step:06d}.safetensors"

    def finish(self, step: int, weights: Path) -> None:
        """Record that all steps are done, and the file of the exported weights."""
        if self.writes:
            write_json(self.path / "run.json", {**self.state(), "finished_step": step, "weights": weights.name})

    def finished_weights(self, steps: int) -> Path | None:
        """Return the exported weights if exactly `steps` steps are done and the file exists."""
        state = self.state()
        if state.get("finished_step") != steps or not (self.path / state["weights"]).is_file():
            return None
        return self.path / state["weights"]

    def append_log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl. Raises RunFailed when the disk refuses."""
        if not self.writes:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFailed(f"Cannot write {self.log}: {error.strerror or error}.") from error

    def cut_log(self, step: int) -> None:
        """Drop the log's lines after `step`, and a line that a crash has cut short."""
        if not self.writes:
            return
        lines = [line for line in self._log_lines() if line["step"] <= step]
        with atomic_write(self.log) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def losses(self) -> list[tuple[int, float]]:
        """Return step and loss of every step in the log."""
        return [(line["step"], line["loss"]) for line in self._log_lines() if line["event"] == "step"]

    def _log_lines(self) -> list[dict[str, Any]]:
        lines = []
        if self.log.is_file():
            for text in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    break
        return lines


def open_run_folder(
    wanted: Path, fingerprint: str, steps: int, former: Callable[[], str] | None = None
) -> tuple[RunFolder, str | None]:
    """Return the folder of a run, and a notice when it is not the one that was named.

    A folder of another training, or of one that is past `steps`, stays as it is: the run gets the first of `<name>-2`,
    `<name>-3`, ... that is free or has the same training. `former` computes the fingerprint of earlier versions,
    which a run may still have. Raises BadInput when `wanted` is a file.
    """
    if wanted.exists() and not wanted.is_dir():
        raise BadInput(f"The run folder {wanted} is a file; name a folder.")
    number, run = 1, RunFolder(wanted)
    former_fingerprint = ""
    while not run.accepts(fingerprint, steps):
        former_fingerprint = former_fingerprint or (former() if former else "")
        if run.accepts(former_fingerprint, steps):
            break
        number += 1
        run = RunFolder(wanted.with_name(f"{wanted.name}-{number}"))
    if run.path == wanted:
        return run, None
    return run, (
        f"{wanted} holds another training (other data, base model or settings, or more steps than requested) and stays "
        f"as it is; this run goes to {run.path}."
    )
