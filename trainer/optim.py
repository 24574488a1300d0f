"""The optimizer, its schedule, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .settings import RunSettings


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], settings: RunSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW over the named parameters, in their order."""
    fused = all(parameter.device.type == "cuda" for parameter in parameters.values())
    return torch.optim.AdamW(
        parameters.values(), lr=learning_rate, weight_decay=settings.weight_decay, fused=fused or None
    )


def learning_rate_at(step: int, steps: int, peak: float, settings: RunSettings) -> float:
    """The learning rate of step `step` (1 for the first) of `steps`: a warm-up from 0, then the schedule.

    `linear` and `cosine` reach 0 just after the last step.
    """
    if step <= settings.warmup_steps:
        return peak * step / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return peak
    done = (step - 1 - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return peak * (1 - done) if settings.lr_scheduler == "linear" else peak * (1 + math.cos(math.pi * done)) / 2


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<parameter name>.<state name>` -> tensor."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """The inverse of `optimizer_tensors`."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        by_name.setdefault(name, {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    state = {index: by_name[name] for index, name in enumerate(parameters) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
