"""Fine-tuning of image-editing models from (control image, caption, target image): the public API.

    request, parquet = load_request(Path("request.json"))
    dataset = drain(open_dataset(parquet, request.training_params.columns))
    for event in train(request, dataset, open_model(request.base_model), RunSettings(), run_dir=Path("runs/mine")):
        ...

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "BadInput": "errors",
    "RunFailed": "errors",
    "FineTuneRequest": "config.request",
    "TrainingParams": "config.request",
    "SamplePrompt": "config.samples",
    "parse_request": "config.request",
    "RunSettings": "config.settings",
    "parse_settings": "config.settings",
    "load_request": "data.load_request",
    "EditDataset": "data.dataset",
    "open_dataset": "data.dataset",
    "drain": "events",
    "EditModel": "models.edit_model",
    "open_model": "models.edit_model",
    "RunControl": "events",
    "train": "training.loop",
    "edit": "inference",
}


__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
