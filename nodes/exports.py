"""Weights of a run's checkpoints, where ComfyUI's loaders list them."""

from __future__ import annotations

from .folders import publish_lora, publish_transformer
from .model_files import import_models
from .saved_runs import find_run


def publish_checkpoint(name: str, step: int) -> dict[str, str]:
    """Export a checkpoint's LoRA or transformer to ComfyUI's model folders; returns file, folder and path, for JSON.

    Raises BadInput for a run or a checkpoint that is missing or damaged, and RunFailed when it cannot be written.
    """
    import_models()
    from ..trainer.models.edit_model import open_model
    from ..trainer.training.export import export_checkpoint, saved_request

    run = find_run(name)
    request, _ = saved_request(run)
    weights = export_checkpoint(run, open_model(request.base_model), step)
    publish = publish_lora if request.training_params.use_lora else publish_transformer
    path = publish(weights)
    return {"file": path.name, "folder": path.parent.name, "path": str(path)}
