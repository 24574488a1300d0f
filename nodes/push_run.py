"""Runs on the Hugging Face hub, for the page, which asks its user first."""

from __future__ import annotations

from typing import Any

from .model_files import import_models
from .saved_runs import find_run


def push_contents(name: str) -> dict[str, Any]:
    """Step and file names of what a push would send, for JSON. Raises BadInput."""
    from ..trainer.hub.package import open_package

    package = open_package(find_run(name))
    return {"step": package.step, "files": package.names}


def push_run(name: str, repo: str, private: bool) -> dict[str, str]:
    """Push a run's LoRA with the login of the account that ComfyUI runs under; returns its address, for JSON.

    Raises BadInput for a run, a repository or a login that cannot be used, and RunFailed when the hub fails.
    """
    import_models()
    from ..trainer.hub.package import open_package
    from ..trainer.hub.push import push
    from ..trainer.models.edit_model import open_model

    package = open_package(find_run(name))
    return {"url": push(package, repo, private, open_model(package.request.base_model))}
