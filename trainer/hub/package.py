"""The files of a run that go to the Hugging Face hub, without what is private."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.public import public_request, public_settings
from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..errors import BadInput
from ..files import write_json, write_text
from ..tensors import load_with_metadata, write_tensors
from ..training.export import existing_step, export_checkpoint, saved_request
from ..training.run_folder import RunFolder
from ..training.run_log import read_log
from .model_card import CardSample, model_card

if TYPE_CHECKING:
    from ..models.edit_model import EditModel

CARD, REQUEST, SETTINGS = "README.md", "request.json", "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPackage:
    """Upload of a run: the LoRA of one step, its sample images, request, settings and model card."""

    run: RunFolder
    request: FineTuneRequest
    settings: RunSettings
    step: int
    """Step of the LoRA and the samples."""
    samples: Mapping[str, CardSample]
    """Samples by the names of their images in the run's samples folder."""

    @property
    def weights(self) -> str:
        """Name of the LoRA's file."""
        return self.run.weights_path(self.step).name

    @property
    def names(self) -> list[str]:
        """Names of all files in the repository."""
        return [CARD, self.weights, REQUEST, SETTINGS, *(sample.file for sample in self.samples.values())]

    def write(self, folder: Path, repo: str, model: EditModel) -> dict[str, Path]:
        """Write the files to an empty folder, for a repository; returns them by name.

        `model` is the run's base model. Raises BadInput and RunFailed.
        """
        self._write_weights(folder / self.weights, model)
        write_json(folder / REQUEST, public_request(self.request.model_dump()))
        write_json(folder / SETTINGS, public_settings(self.settings.model_dump()))
        card = model_card(repo, self.weights, self.step, self.request, self.settings, list(self.samples.values()))
        write_text(folder / CARD, card)
        samples = {sample.file: self.run.samples / name for name, sample in self.samples.items()}
        return {name: samples.get(name, folder / name) for name in self.names}

    def _write_weights(self, path: Path, model: EditModel) -> None:
        """Write the LoRA with a header that has neither paths nor addresses."""
        from safetensors import SafetensorError

        own = self.run.weights_path(self.step)
        source = own if own.is_file() else export_checkpoint(self.run, model, self.step, path)
        try:
            tensors, metadata = load_with_metadata(source)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{source} is damaged: {error}. Choose another step.") from None
        for key, public in (("edit_trainer.request", public_request), ("edit_trainer.settings", public_settings)):
            try:
                metadata[key] = json.dumps(public(json.loads(metadata[key])), ensure_ascii=False)
            except (KeyError, TypeError, ValueError, AttributeError):
                metadata.pop(key, None)  # A header that another program has written.
        write_tensors(path, tensors, metadata)


def open_package(run: RunFolder, step: int | None = None) -> RunPackage:
    """Choose what is uploaded of a run: the LoRA of a step, None for the finished one, else the newest checkpoint's.

    Raises BadInput for what is not a run, for a full fine-tune, and for a step that is not there.
    """
    request, settings = saved_request(run)
    if not request.training_params.use_lora:
        raise BadInput(f"{run.path} is a full fine-tune; only LoRAs are pushed.")
    state = run.state()
    if step is None and run.finished_weights(state.get("finished_step", -1)) is not None:
        step = state["finished_step"]
    if step is None or not run.weights_path(step).is_file():
        step = existing_step(run, step)
    return RunPackage(run=run, request=request, settings=settings, step=step, samples=_samples(run, request, step))


def _samples(run: RunFolder, request: FineTuneRequest, step: int) -> dict[str, CardSample]:
    """Samples of a step. A prompt that the request does not have is a caption of the dataset, which stays private."""
    requested = [sample.prompt for sample in request.training_params.samples]
    lines = [line for line in read_log(run.log)[0] if line["event"] == "sample" and line["step"] == step]
    prompts = {line.get("file"): line.get("prompt") for line in lines}
    found = {}
    for index, path in run.sample_files().get(step, {}).items():
        own = requested[index] if index < len(requested) else None
        prompt = own if own is not None and prompts.get(path.name) == own else ""
        found[path.name] = CardSample(f"samples/{path.name}", prompt)
    return found
