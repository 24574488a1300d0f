"""Mathematics of rectified-flow training: timesteps, loss weights, noising, loss. Pure functions.

`t` runs over 0..1000, sigma = t / 1000, x_t = (1 - sigma) * x0 + sigma * noise, and the model learns the velocity
noise - x0 (Liu et al. 2022, "Flow Straight and Fast", in the orientation of Flux and Qwen-Image: sigma 1 is noise).
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch

from ..config.request import TimestepType

TIMESTEPS = 1000
"""Scale of `t`, as in the scheduler configs of Flux and Qwen-Image (`num_train_timesteps`)."""

WEIGHT_KNOTS: tuple[tuple[int, float], ...] = (
    (1000, 0.917),
    (996, 0.952),
    (987, 1.097),
    (980, 1.174),
    (965, 1.297),
    (954, 1.359),
    (931, 1.455),
    (919, 1.483),
    (865, 1.519),
    (806, 1.452),
    (537, 0.980),
    (415, 0.820),
    (280, 0.723),
    (215, 0.714),
    (128, 0.732),
    (100, 0.716),
    (71, 0.654),
    (16, 0.464),
    (1, 0.447),
)
"""(t, w), measured on a flow-matching model by the authors of ostris/ai-toolkit
(toolkit/timestep_weighing/default_weighing_scheme.py); linear in between."""


def draw_sigmas(timestep_type: TimestepType, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` noise levels, float32 `[count]` in 0..1.

    `linear` and `weighted`: t uniform over linspace(1000, 1, 1000). `sigmoid`: sigmoid of a standard normal.
    """
    if timestep_type == "sigmoid":
        return torch.sigmoid(torch.randn(count, generator=generator))
    index = torch.randint(TIMESTEPS, (count,), generator=generator)
    return (TIMESTEPS - index).to(torch.float32) / TIMESTEPS


def fixed_sigmas(timestep_type: TimestepType, count: int) -> torch.Tensor:
    """Return the noise levels in the middle of `count` equally likely parts of what `draw_sigmas` draws from, float32
    `[count]` in 0..1."""
    middles = (torch.arange(count, dtype=torch.float32) + 0.5) / count
    if timestep_type == "sigmoid":
        return torch.sigmoid(torch.special.ndtri(middles))
    return middles


@cache
def _weight_table() -> torch.Tensor:
    """Return w at t = 0..1000 (t = 0 repeats t = 1), float32 `[1001]`, mean 1 over t = 1..1000."""
    weights = torch.empty(TIMESTEPS + 1, dtype=torch.float64)
    knots = sorted(WEIGHT_KNOTS)
    for (t0, w0), (t1, w1) in pairwise(knots):
        steps = torch.arange(t1 - t0 + 1, dtype=torch.float64) / (t1 - t0)
        weights[t0 : t1 + 1] = w0 + (w1 - w0) * steps
    weights[0] = weights[1]
    return (weights / weights[1:].mean()).to(torch.float32)


def loss_weights(timestep_type: TimestepType, sigmas: torch.Tensor) -> torch.Tensor:
    """Return the factor of each example's loss, float32 `[B]`: w(t) for `weighted`, otherwise 1.

    `sigmas` are float32 `[B]` in 0..1.
    """
    if timestep_type != "weighted":
        return torch.ones_like(sigmas)
    index = (sigmas * TIMESTEPS).round().to(torch.long)
    return _weight_table().to(sigmas.device)[index]


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return x_t = (1 - sigma) * x0 + sigma * noise, float32 `[B, ...]`.

    `clean` and `noise` are float32 `[B, ...]`, `sigmas` float32 `[B]`.
    """
    sigmas = sigmas.view(-1, *[1] * (clean.dim() - 1))
    return (1 - sigmas) * clean + sigmas * noise


def example_losses(
    velocity: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    weights: torch.Tensor,
    token_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return each example's weighted mean squared error against noise - x0, float32 `[B]`.

    `velocity`, `clean` and `noise` are `[B, ...]` of any floating dtype, `weights` float32 `[B]`, `token_weights`
    float32 `[B, tokens]` for tokens `[B, tokens, channels]`.
    """
    return squared_errors(velocity, noise.float() - clean.float(), token_weights) * weights


def squared_errors(
    velocity: torch.Tensor, target: torch.Tensor, token_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return each example's mean squared error, float32 `[B]`, of `velocity` and `target` `[B, ...]` of any floating
    dtype. With `token_weights`, float32 `[B, tokens]`, they are `[B, tokens, channels]`, and each token's error is
    multiplied by its weight."""
    errors = (velocity.float() - target.float()) ** 2
    if token_weights is not None:
        errors = errors * token_weights.unsqueeze(-1)
    return errors.flatten(1).mean(1)


def mask_weights(mask: torch.Tensor, minimum: float) -> torch.Tensor:
    """Return the weights minimum + (1 - minimum) * mask of each token, normalized to mean 1 over each example.

    `mask` is float32 `[B, tokens]` in 0..1. Where no token counts, all weights are 0.
    """
    weights = minimum + (1 - minimum) * mask
    means = weights.mean(1, keepdim=True)
    return weights / torch.where(means > 0, means, 1)
