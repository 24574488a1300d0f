"""Training weights that are held in bf16 alone: updates in float32, rounded at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .flow import example_generator

BITS_CUT = 16
"""Of float32's mantissa, to make bf16."""


class RoundedAdafactor(torch.optim.Adafactor):
    """torch's Adafactor for bf16 parameters. An update that is smaller than the gap between two bf16 numbers is not
    lost: it decides how likely the weight is rounded up."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], seed: int, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update. The rounding follows from seed, step and the parameter's place alone."""
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
    """Finite float32 values in bf16, each rounded to one of its two neighbours so that the mean over many draws is
    the value itself."""
    noise = torch.randint(1 << BITS_CUT, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits = values.detach().view(torch.int32) + noise
    return (bits >> BITS_CUT << BITS_CUT).view(torch.float32).to(torch.bfloat16)
