"""`push`: a run's LoRA to the Hugging Face hub."""

from __future__ import annotations

import argparse

from ..errors import OK
from ..files import named_folder
from .console import Console
from .runner import load_model


def push(options: argparse.Namespace) -> int:
    """Run `push RUN --repo OWNER/NAME`."""
    from ..hub.package import open_package
    from ..hub.push import check_login, check_repo, push
    from ..training.run_folder import RunFolder

    check_repo(options.repo)
    package = open_package(RunFolder(named_folder(options.run_folder)), options.step)
    check_login()
    with Console() as console:
        console.line(f"Pushing step {package.step} to {options.repo}{' (private)' if options.private else ''}:")
        for name in package.names:
            console.line(f"  {name}")
        model = load_model(package.request.base_model, {})
        console.line(f"Pushed: {push(package, options.repo, options.private, model)}")
    return OK
