"""`train`: train a request, in one process or in several."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data.load_request import load_request
from ..errors import OK
from .console import Console
from .model_options import model_options
from .runner import Stopped, edit_command, run_training
from .settings_options import read_settings


def train(options: argparse.Namespace) -> int:
    """Run `train REQUEST.json`."""
    from ..distributed.processes import launched_processes
    from ..tracking.trackers import open_trackers

    with launched_processes() as processes, Console(silent=not processes.is_main) as console:
        with processes.main_process_first():  # so that only one process reports a bad request
            settings = read_settings(options)
            request, parquet = load_request(options.request)
            trackers = open_trackers(settings, options.log_with) if processes.is_main else []
        model = model_options(options)
        run_dir = options.out or Path("runs") / options.request.stem
        finished = run_training(
            console,
            request,
            parquet,
            settings,
            run_dir,
            options.cache,
            model,
            options.command_line,
            processes,
            trackers,
        )
        if isinstance(finished, Stopped):
            return finished.exit_code
        console.line(f"Done after {finished.step} steps: {finished.weights}")
        if finished.best_weights:
            console.line(f"Lowest held-out loss: {finished.best_weights}")
        if finished.ema_weights:
            console.line(f"Averaged weights: {finished.ema_weights}")
        if finished.best_ema_weights:
            console.line(f"Averaged weights at the lowest held-out loss: {finished.best_ema_weights}")
        if request.training_params.use_lora:
            images = len(request.training_params.columns.controls)
            console.line(f"To use it:\n  {edit_command(request.base_model, finished.weights, model, images)}")
    return OK
