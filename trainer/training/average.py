"""Exponential moving average (EMA) of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..tensors import copy_values


class WeightAverage:
    """EMA of trained weights, float32, on their device and sharded as they are.

    The first steps count more, since the average begins at weights that have learned nothing: the decay at step n is at
    most (1 + n) / (10 + n), as in diffusers' EMAModel and in TensorFlow's ExponentialMovingAverage. It depends on the
    step alone, so that the average is all there is to save.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        """Begin at the present values of the parameters, of any shape and float dtype."""
        self.decay = decay
        self.values: dict[str, torch.Tensor] = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.nn.Parameter], step: int) -> None:
        """Add the weights of a step, counted from 1; parameters of any shape and float dtype."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.mul_(decay).add_(parameters[name].detach().float(), alpha=1 - decay)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Replace the average by values of the same names, of any shape and dtype."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def applied(self, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
        """Context in which the parameters, of any shape, have the average's values in their own dtype; restores them on
        exit."""
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            copy_values(parameters, self.values)
            yield
        finally:
            copy_values(parameters, trained)
