"""Timesteps, weights and noising against the definitions."""

import math
from itertools import pairwise

import torch

from trainer.training.flow_matching import WEIGHT_KNOTS, add_noise, draw_sigmas, example_losses, loss_weights
from trainer.training.rng import example_generator

DRAWS = 100_000


def kolmogorov_smirnov(draws: torch.Tensor, cdf) -> float:
    """Largest distance between the draws' distribution and `cdf`; above 1.95 / sqrt(n) has probability 0.001."""
    ordered = draws.double().sort().values
    expected = cdf(ordered)
    n = len(ordered)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - expected
    below = expected - torch.arange(n, dtype=torch.float64) / n
    return max(above.max().item(), below.max().item())


def test_sigmoid_draws_follow_the_logit_normal():
    draws = draw_sigmas("sigmoid", DRAWS, torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(0.0, 1.0)
    assert kolmogorov_smirnov(draws, lambda x: normal.cdf(torch.logit(x))) < 1.95 / math.sqrt(DRAWS)


def test_linear_and_weighted_draws_are_uniform_over_the_thousand_timesteps():
    for timestep_type in ("linear", "weighted"):
        draws = draw_sigmas(timestep_type, DRAWS, torch.Generator().manual_seed(0))
        steps = (draws * 1000).round()
        assert torch.equal(steps / 1000, draws)
        assert steps.min() == 1
        assert steps.max() == 1000
        # the distribution has steps of 1/1000
        assert kolmogorov_smirnov(draws, lambda x: x) < 1.95 / math.sqrt(DRAWS) + 1 / 1000


def test_draws_of_single_examples_are_distributed_alike():
    draws = torch.cat([draw_sigmas("sigmoid", 1, example_generator(7, "timestep", 0, row)) for row in range(5000)])
    normal = torch.distributions.Normal(0.0, 1.0)
    assert kolmogorov_smirnov(draws, lambda x: normal.cdf(torch.logit(x))) < 1.95 / math.sqrt(5000)


def test_weights_pass_through_the_knots_and_have_mean_one():
    t = torch.arange(1, 1001)
    weights = loss_weights("weighted", t / 1000)
    assert abs(weights.double().mean().item() - 1) < 1e-6
    factor = weights[999].item() / 0.917
    for (t1, w1), (t0, w0) in pairwise(WEIGHT_KNOTS):
        for step in range(t0, t1 + 1):
            expected = w0 + (w1 - w0) * (step - t0) / (t1 - t0)
            assert abs(weights[step - 1].item() / factor - expected) < 1e-5


def test_other_types_are_not_weighted():
    sigmas = torch.rand(10)
    assert torch.equal(loss_weights("linear", sigmas), torch.ones(10))
    assert torch.equal(loss_weights("sigmoid", sigmas), torch.ones(10))


def test_noising_and_loss():
    clean, noise = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    sigmas = torch.tensor([0.0, 0.25])
    noisy = add_noise(clean, noise, sigmas)
    assert torch.equal(noisy[0], clean[0])
    assert torch.allclose(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    weights = torch.tensor([1.0, 3.0])
    assert torch.equal(example_losses(noise - clean, clean, noise, weights), torch.zeros(2))
    losses = example_losses(noise - clean + 2.0, clean, noise, weights)
    assert torch.allclose(losses, torch.tensor([4.0, 12.0]))


def test_generators_are_addressed():
    def draw(*address):
        return torch.randn(3, generator=example_generator(*address))

    assert torch.equal(draw(42, "noise", 1, 2), draw(42, "noise", 1, 2))
    others = [(43, "noise", 1, 2), (42, "timestep", 1, 2), (42, "noise", 2, 1), (42, "noise", 12), (42, "noise", 1, 3)]
    assert not any(torch.equal(draw(42, "noise", 1, 2), draw(*other)) for other in others)
