"""Training steps of full-width models of three blocks on the card, under any plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.benchmarks.synthetic import RandomModel, random_batches, random_model
from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.training.batch import Batch
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import build_trainable

CUDA = torch.device("cuda", 0)
COLUMNS = {"caption_column": "c", "control_image_column": "b", "image_column": "a"}
PARAMS = TrainingParams(**COLUMNS)
SETTINGS = RunSettings(resolution=512, control_resolution="target")
MODELS = {
    "kontext": ("black-forest-labs/FLUX.1-Kontext-dev", {"num_layers": 1, "num_single_layers": 2}),
    "qwen": ("Qwen/Qwen-Image-Edit", {"num_layers": 3}),
}
BLOCKS = 3


def reduced(name: str) -> RandomModel:
    """The model of full width with three blocks."""
    base_model, blocks = MODELS[name]
    return random_model(base_model, **blocks)


def plan(**how: Any) -> Plan:
    """A plan in bf16 with everything on the card."""
    return Plan(**{"precision": "bf16", "dtype": torch.bfloat16, "offload": "none"} | how)


def batches(model: RandomModel, count: int = 2) -> list[Batch]:
    """Micro-batches of one example at 512 x 512, bf16. Their timesteps, 1000 times sigma, are exact in bf16."""
    shape = step_shape(model.family, PARAMS, SETTINGS, plan())
    random = random_batches(model.family, model.transformer_config(), shape)
    return [replace(next(random), sigmas=torch.tensor([0.25 + 0.25 * number])) for number in range(count)]


def gradients(
    model: RandomModel, how: Plan, change: Callable[[torch.nn.Module], object] | None = None
) -> list[dict[str, torch.Tensor]]:
    """Gradients of a LoRA with random matrices after each of two micro-batches, float32 on the CPU, by name."""
    components = ModelComponents(model, CUDA, how)
    if change is not None:
        change(components.transformer())
    trainable = build_trainable(components, PARAMS, SETTINGS)
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable.parameters.values():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device)
    found = []
    for batch in with_modulation(components, batches(model), 1.0):
        micro_step(components, batch, 1, 1.0)
        found.append({name: p.grad.cpu() for name, p in trainable.parameters.items() if p.grad is not None})
        for parameter in trainable.parameters.values():
            parameter.grad = None
    return found


def cosine(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> float:
    """Cosine of all gradients as one vector."""
    a, b = (torch.cat([g.flatten() for step in steps for g in step.values()]).double() for steps in (ours, theirs))
    return float(a @ b / (a.norm() * b.norm()))


def equal(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> bool:
    """Tell whether all gradients are equal to the bit."""
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(ours, theirs, strict=True)
    )
