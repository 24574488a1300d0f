"""Header metadata of an exported weights file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.request import FineTuneRequest
from ..config.settings import LOCAL_FILES, RunSettings

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


def export_metadata(request: FineTuneRequest, settings: RunSettings, model: EditModel, step: int) -> dict[str, str]:
    """Header metadata of a LoRA or transformer file: request, settings and the fields of the Stability AI model spec.

    At a step before the last they are those of a run that ends there. Without a date, so that equal runs give equal
    files. Source: https://github.com/Stability-AI/ModelSpec
    """
    params = request.training_params
    resolution = settings.resolution or model.family.variant.resolution
    kind = "lora" if params.use_lora else "checkpoint"
    recorded_settings = settings.recorded()
    recorded_settings |= {name: Path(recorded_settings[name]).name for name in LOCAL_FILES if name in recorded_settings}
    recorded_request = request.model_dump() | {"training_params": params.recorded() | {"steps": step}}
    metadata = {
        "edit_trainer.request": json.dumps(recorded_request, ensure_ascii=False),
        "edit_trainer.settings": json.dumps(recorded_settings, ensure_ascii=False),
        "edit_trainer.base_model": request.base_model,
        "edit_trainer.conditioning": model.family.policy,
        "edit_trainer.control_resolution": settings.control_resolution,
        "edit_trainer.resolution": str(resolution),
        "edit_trainer.steps": str(step),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{model.family.info.name}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "velocity",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.title": f"{request.base_model} {kind}, {step} steps",
    }
    if params.use_lora:
        metadata |= {"edit_trainer.rank": str(params.lora_rank), "edit_trainer.alpha": str(params.lora_alpha)}
    return metadata
