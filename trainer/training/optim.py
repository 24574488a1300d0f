"""Optimizers, the learning rate schedule, and optimizer state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..config.packages import require_package
from ..config.settings import RunSettings
from ..quantization.formats import BITSANDBYTES
from .rng import example_generator


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], settings: RunSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """Build the optimizer that the settings name. Raises BadInput when it needs a package that is not installed."""
    weight_decay = settings.weight_decay
    if settings.optimizer == "adafactor":
        if all(parameter.dtype == torch.float32 for parameter in parameters.values()):
            return torch.optim.Adafactor(parameters.values(), lr=learning_rate, weight_decay=weight_decay)
        return RoundedAdafactor(parameters.values(), settings.seed, lr=learning_rate, weight_decay=weight_decay)
    if settings.optimizer == "adamw8bit":
        adamw8bit = require_package(BITSANDBYTES, 'optimizer "adamw8bit"').optim.AdamW8bit
        return adamw8bit(parameters.values(), lr=learning_rate, weight_decay=weight_decay)
    fused = all(parameter.device.type == "cuda" for parameter in parameters.values())
    return torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=weight_decay, fused=fused or None)


def check_optimizer(settings: RunSettings) -> None:
    """Raise BadInput when the optimizer needs a package that is not installed."""
    if settings.optimizer == "adamw8bit":
        require_package(BITSANDBYTES, 'optimizer "adamw8bit"')


def learning_rate_at(step: int, steps: int, peak: float, settings: RunSettings) -> float:
    """Return the learning rate of step `step` (1 for the first) of `steps`: a warm-up from 0, then the schedule.

    `linear` and `cosine` reach 0 just after the last step. A function of the step rather than torch's LRScheduler: it
    has no state to save, so that a resumed run and one with more steps need only the step.
    """
    if step <= settings.warmup_steps:
        return peak * step / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return peak
    done = (step - 1 - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return peak * (1 - done) if settings.lr_scheduler == "linear" else peak * (1 + math.cos(math.pi * done)) / 2


def changed_schedule(done: int, began: int, steps: int, peak: float, settings: RunSettings) -> str | None:
    """Say that the learning rate of a run jumps because it was planned for `began` steps and now goes to `steps`.

    None when it does not: at the first step, with a constant rate, and within the warm-up.
    """
    before, after = (learning_rate_at(done + 1, total, peak, settings) for total in (began, steps))
    if done == 0 or math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12 * peak):
        return None
    return (
        f"The {settings.lr_scheduler} schedule depends on steps, which were {began} and are {steps} now: at step "
        f"{done + 1} the learning rate goes to {after:.3g}, where the schedule so far has {max(before, 0):.3g}. For an "
        "even schedule train anew with the final number of steps, in another folder."
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by `<parameter name>.<state name>`: tensors of any shape and dtype."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def fits_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> bool:
    """Tell whether tensors, of any shape and dtype, can be loaded by `load_optimizer_tensors`: their names and shapes
    are those that the optimizer keeps of these parameters."""
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            return False
        if isinstance(optimizer, torch.optim.AdamW):
            shapes = {"step": (), "exp_avg": parameters[name].shape, "exp_avg_sq": parameters[name].shape}
            if key not in shapes or tensor.shape != shapes[key]:
                return False
        elif isinstance(optimizer, torch.optim.Adafactor) and key not in ("step", "variance", "row_var", "col_var"):
            return False
    return True


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Load a state from `optimizer_tensors`: tensors of any shape and dtype by `<parameter name>.<state name>`."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        by_name.setdefault(name, {})[key] = tensor
    if isinstance(optimizer, RoundedAdafactor):
        # load_state_dict would round the float32 state to the parameters' bf16.
        for name, state in by_name.items():
            placed = {
                key: value if key == "step" else value.to(parameters[name].device) for key, value in state.items()
            }
            optimizer.state[parameters[name]] = placed
        return
    states: dict[int, dict[str, torch.Tensor | int]] = {
        index: {**by_name[name]} for index, name in enumerate(parameters) if name in by_name
    }
    if not isinstance(optimizer, torch.optim.AdamW | torch.optim.Adafactor):
        for state in states.values():
            state["step"] = int(state["step"])  # bitsandbytes counts steps in a plain number
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


BITS_CUT = 16
"""Low bits of a float32 that bf16 lacks."""


class RoundedAdafactor(torch.optim.Adafactor):
    """torch's Adafactor for bf16 parameters, with stochastic rounding.

    An update smaller than the gap between two bf16 numbers is not lost: it is the probability that the weight is
    rounded to the next number.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], seed: int, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters; the rounding depends on seed, step and the parameter's index alone."""
        for group in self.param_groups:
            options = {name: value for name, value in group.items() if name != "params"}
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                exact = torch.nn.Parameter(parameter.detach().float())
                exact.grad = parameter.grad.float()
                one = torch.optim.Adafactor([{"params": [exact], **options}])
                if parameter in self.state:
                    one.state[exact] = self.state[parameter]
                one.step()
                self.state[parameter] = one.state[exact]
                step = int(self.state[parameter]["step"])
                seed = example_generator(self.seed, "rounding", step, index).initial_seed()
                generator = torch.Generator(parameter.device).manual_seed(seed)
                parameter.copy_(stochastically_rounded(exact, generator))


def stochastically_rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round finite float32 values of any shape to bf16, up or down at random so that the expectation is the value."""
    noise = torch.randint(1 << BITS_CUT, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits = values.detach().view(torch.int32) + noise
    return (bits >> BITS_CUT << BITS_CUT).view(torch.float32).to(torch.bfloat16)
