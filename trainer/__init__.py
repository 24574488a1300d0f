"""Fine-tuning of image-editing models from (control image, caption, target image): the public API.

    request, parquet = load_request(Path("request.json"))
    dataset = drain(open_dataset(parquet, caption_column=..., control_image_column=..., image_column=...))
    for event in train(request, dataset, open_model(request.base_model), RunSettings(), run_dir=Path("runs/mine")):
        ...

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "BadInput": "errors",
    "RunFailed": "errors",
    "FineTuneRequest": "schema",
    "TrainingParams": "schema",
    "SamplePrompt": "schema",
    "parse_request": "schema",
    "RunSettings": "settings",
    "parse_settings": "settings",
    "load_request": "request",
    "EditDataset": "dataset",
    "open_dataset": "dataset",
    "drain": "dataset",
    "EditModel": "models.sources",
    "open_model": "models.sources",
    "RunControl": "events",
    "train": "loop",
    "edit": "sampling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
