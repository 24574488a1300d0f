"""`plan`: the memory plan of a request on a device, without loading a model."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from ..config.request import FineTuneRequest, parse_request
from ..config.settings import RunSettings
from ..config.validation import read_json_file
from ..errors import OK, BadInput
from .model_options import model_options
from .runner import load_model
from .settings_options import read_settings


def plan(options: argparse.Namespace) -> int:
    """Run `plan REQUEST.json`."""
    settings = read_settings(options)
    request = parse_request(read_json_file(options.request, "the request"))
    for name, amount in (("--vram", options.vram), ("--ram", options.ram)):
        if amount is not None and not 0 < amount < math.inf:
            raise BadInput(f"{name} {amount}: must be a positive number of GB")
    model = load_model(request.base_model, model_options(options), settings.conditioning)
    from ..device import assumed_gpu, default_device, query_device
    from ..memory.planner import make_plan

    device_info = query_device(default_device()) if options.vram is None else assumed_gpu(options.vram, options.ram)
    if options.vram is None and options.ram is not None:
        device_info = replace(device_info, host=int(options.ram * 1e9))
    memory_plan = make_plan(model, request.training_params, settings, device_info)
    print(f"{request.base_model} in {device_info.free / 1e9:.1f} GB: {memory_plan.line()}")
    width = max(map(len, memory_plan.expected))
    for name, size in memory_plan.expected.items():
        print(f"  {name:<{width}}  {size / 1e9:7.2f} GB")
    print(f"  {'total':<{width}}  {memory_plan.bytes / 1e9:7.2f} GB")
    if memory_plan.phases:
        print(f"\n  {'phase':<{width}}   device     host, GB")
    for phase in memory_plan.phases:
        print(f"  {phase.name:<{width}}  {phase.device / 1e9:7.2f}  {phase.host / 1e9:7.2f}")
    if settings.validation_rows:
        print(f"\n  {_measuring(request, settings)}")
    return OK


def _measuring(request: FineTuneRequest, settings: RunSettings) -> str:
    """Return what measuring the held-out loss takes; where a share of the rows is held out, for each 100 rows."""
    from ..training.held_out import measuring_cost

    amount, params = settings.validation_rows, request.training_params
    if amount >= 1:
        return measuring_cost(int(amount), params, settings) or ""
    return f"for each 100 rows of the dataset: {measuring_cost(max(1, round(100 * amount)), params, settings)}"
