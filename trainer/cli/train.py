from __future__ import annotations

import argparse
from pathlib import Path

from ..data.load_request import load_request
from ..errors import INTERRUPTED, OK
from .console import Terminal
from .parser import model_options, read_settings
from .runner import edit_command, run_training


def train(options: argparse.Namespace) -> int:
    """`train REQUEST.json`."""
    from ..distributed.ranks import joined

    with joined() as ranks, Terminal(silent=not ranks.main) as terminal:
        settings = read_settings(options)
        request, parquet = load_request(options.request)
        model = model_options(options)
        run_dir = options.out or Path("runs") / options.request.stem
        finished = run_training(
            terminal, request, parquet, settings, run_dir, options.cache, model, options.command_line, ranks
        )
        if finished is None:
            return INTERRUPTED
        terminal.line(f"Done after {finished.step} steps: {finished.weights}")
        if request.training_params.use_lora:
            terminal.line(f"Use it:\n  {edit_command(request.base_model, finished.weights, model)}")
    return OK
