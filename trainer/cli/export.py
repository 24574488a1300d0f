"""`export`: the LoRA or transformer of a checkpoint."""

from __future__ import annotations

import argparse

from ..errors import OK
from .console import Console
from .model_options import model_options
from .runner import edit_command, load_model


def export(options: argparse.Namespace) -> int:
    """Run `export RUN`."""
    from ..training.export import export_checkpoint, saved_request
    from ..training.run_folder import RunFolder

    run = RunFolder(options.run_folder)
    request, _ = saved_request(run)
    model = model_options(options)
    with Console() as console:
        path = export_checkpoint(run, load_model(request.base_model, model), options.step, options.out, options.ema)
        console.line(f"Exported: {path}")
        if request.training_params.use_lora:
            images = len(request.training_params.columns.controls)
            console.line(f"To use it:\n  {edit_command(request.base_model, path, model, images)}")
    return OK
