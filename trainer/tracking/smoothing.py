"""The smoothed loss, as the page's chart and the logs show it."""

from __future__ import annotations

SMOOTHING_STEPS = 50
"""Window of the smoothed loss, as in `web/panel/state.js`."""


class SmoothedLoss:
    """Exponential mean of the losses, with the weights of `web/panel/state.js`.

    Its window grows with the run. Beyond some hundred steps, those before the first one no longer show in it.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        """The mean; None before the first step."""

    def add(self, step: int, loss: float) -> float:
        """Add a step, numbered from 1; returns the mean."""
        weight = max(1 / SMOOTHING_STEPS, 1 / (1 + 0.15 * max(0, step - 1)))
        self.value = loss if self.value is None else self.value + (loss - self.value) * weight
        return self.value
