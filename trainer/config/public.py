"""The parts of a request and its settings that may leave the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .request import FineTuneRequest
from .samples import DEFAULT_CONTROL_URL
from .settings import LOCAL_FILES, RunSettings, caches_texts

Parameter = str | int | float | bool
"""Value of one parameter of a run."""


def public_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request, as decoded JSON, without what is private: the folder of its dataset, the places of its control
    images, other than the published default, and the fields of the hosted service."""
    params = dict(request["training_params"])
    params["samples"] = [
        {**sample, "ctrl_img_url": _public_controls(sample.get("ctrl_img_url", ""))}
        for sample in params.get("samples") or []
    ]
    return {
        "resource": _file_name(request["resource"]),
        "base_model": request["base_model"],
        "script_type": request["script_type"],
        "training_params": params,
    }


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return run settings, as decoded JSON, without the folders of images and of model files."""
    public = {"images_root": "", "init_lora": "", **settings}
    return public | {"images_root": ""} | {name: _file_name(public[name]) for name in LOCAL_FILES if name in public}


def run_parameters(request: FineTuneRequest, settings: RunSettings) -> dict[str, Parameter]:
    """Return everything that can be shown of a run's request and settings, by name; lists become text, and samples are
    left out."""
    public = public_request(request.model_dump())
    params: dict[str, Any] = public.pop("training_params")
    params |= {"cache_text_embeddings": caches_texts(request.training_params, settings)}
    values = {**public_settings(settings.model_dump()), **public, **params}
    del values["samples"]
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in values.items()}


def _public_controls(urls: str | list[str]) -> str | list[str]:
    """Keep the published default of a sample's control images; any other may be a local path or an address that grants
    access."""
    return urls if urls in (DEFAULT_CONTROL_URL, [DEFAULT_CONTROL_URL]) else ""


def _file_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[\\/]", path)[-1]
