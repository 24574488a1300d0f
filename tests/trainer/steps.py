"""Deeper random models of both families, and training steps on random data under any plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config.request import TrainingParams
from trainer.config.settings import Precision, RunSettings
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel, open_model
from trainer.models.types import Grid, PackedLatents
from trainer.single_file.load_module import WeightSink
from trainer.training.batch import Batch, TextGroup
from trainer.training.batch_sampler import Position
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import build_trainable

CPU = torch.device("cpu")
SQUARE = Grid(4, 4)
COLUMNS = {"caption_column": "c", "control_image_column": "b", "image_column": "a"}
DEPTHS = {
    "flux-kontext": {"num_layers": 3, "num_single_layers": 4},
    "qwen-image-edit": {"num_layers": 6},
    "qwen-image-edit-plus": {"num_layers": 6},
    "flux2-klein": {"num_layers": 3, "num_single_layers": 4},
}


def deepened(model: EditModel, folder: Path) -> EditModel:
    """The same model with more blocks, their weights random."""
    shutil.copytree(model.folder, folder)
    small = model.load_transformer("cpu", torch.float32)
    torch.manual_seed(3)
    deep = type(small).from_config({**small.config, **DEPTHS[model.family.info.name]})
    deep.save_pretrained(folder / "transformer")
    return open_model(model.base_model, folder)


def plan(**how: Any) -> Plan:
    """A plan in float32."""
    return Plan(**{"precision": "fp32", "dtype": torch.float32, "offload": "none"} | how)


def random_batch(model: EditModel, seed: int, texts: Sequence[int] = (6,), grid: Grid = SQUARE) -> Batch:
    """A micro-batch with one example for each of the texts' lengths."""
    generator = torch.Generator().manual_seed(seed)
    size, config = len(texts), model.empty_transformer().config

    def tokens() -> torch.Tensor:
        return torch.randn(size, grid.height * grid.width, config["in_channels"], generator=generator)

    conditionings = []
    for length in texts:
        text = {"prompt_embeds": torch.randn(1, length, config["joint_attention_dim"], generator=generator)}
        if model.family.info.name == "flux-kontext":
            text["pooled_prompt_embeds"] = torch.randn(1, config["pooled_projection_dim"], generator=generator)
        conditionings.append(text)
    groups = [
        TextGroup(rows, model.family.collate_text([conditionings[row] for row in rows]))
        for rows in model.family.text_groups(conditionings)
    ]
    return Batch(
        examples=[None] * size,
        clean=PackedLatents(tokens(), grid),
        noise=tokens(),
        controls=(PackedLatents(tokens(), grid),),
        texts=tuple(groups),
        sigmas=torch.rand(size, generator=generator),
        weights=torch.ones(size),
        next_position=Position(0, 0),
    )


@dataclass(frozen=True)
class Trained:
    """What some steps gave."""

    components: ModelComponents
    losses: list[torch.Tensor]
    gradients: list[dict[str, torch.Tensor]]
    """Of each step."""

    def equals(self, other: Trained) -> bool:
        """To the bit."""
        pairs = zip(self.gradients, other.gradients, strict=True)
        return all(map(torch.equal, self.losses, other.losses)) and all(
            torch.equal(ours[name], theirs[name]) for ours, theirs in pairs for name in ours
        )


def trained(
    model: EditModel,
    plan: Plan,
    batches: Sequence[Batch],
    change: Callable[[nn.Module], object] | None = None,
) -> Trained:
    """One step of a LoRA, all of it random, for each micro-batch. `change`: done to the transformer when it is
    loaded."""
    components = ModelComponents(model if change is None else Changed(model, change), CPU, plan)
    params = TrainingParams(lora_rank=4, lora_alpha=4, **COLUMNS)
    trainable = build_trainable(components, params, RunSettings())
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    losses, gradients = [], []
    for batch in with_modulation(components, batches, 1.0):
        losses.append(micro_step(components, batch, len(batch.examples), 1.0))
        gradients.append({name: parameter.grad for name, parameter in trainable.parameters.items()})
        for parameter in trainable.parameters.values():
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None
    return Trained(components, losses, gradients)


class Changed:
    """A model whose transformer is changed as soon as it is loaded."""

    def __init__(self, model: EditModel, change: Callable[[nn.Module], object]) -> None:
        self.family = model.family
        self.ports = None
        self.adapter = None
        self._model, self._change = model, change

    def load_transformer(
        self, device: torch.device, dtype: torch.dtype, precision: Precision, sink: WeightSink | None = None
    ) -> nn.Module:
        transformer = self._model.load_transformer(device, dtype, precision)
        self._change(transformer)
        return transformer
