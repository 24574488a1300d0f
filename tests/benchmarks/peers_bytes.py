"""Bytes of parameters and of what one forward pass saves, in bf16 and checkpointed, ours under an int8 plan; for
`peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def plain_bytes(model: Path, parquet: Path, targets: str, rank: int, size: int) -> dict:
    """Bytes of plain bf16 training with checkpointing."""
    from tests.benchmarks.plain import PlainTraining

    training = PlainTraining(model, targets, rank, True, torch.bfloat16)
    training.cache(parquet, size)
    return kept_bytes(training.transformer, lambda: training.loss(0))


def our_bytes(base_model: str, folder: Path, rank: int, size: int, **settings: str) -> dict:
    """Bytes under a plan of int8 in bf16, on what is the device in the plan's eyes."""
    from dataclasses import replace

    from tests.benchmarks.synthetic import random_batches
    from trainer.config.request import TrainingParams
    from trainer.config.settings import RunSettings
    from trainer.device import assumed_gpu
    from trainer.memory.activation_bytes import step_shape
    from trainer.memory.model_parts import ModelComponents
    from trainer.memory.planner import make_plan
    from trainer.models.edit_model import open_model
    from trainer.training.trainable import build_trainable

    model = open_model(base_model, folder)
    params = TrainingParams(caption_column="c", control_image_column="b", image_column="a", lora_rank=rank)
    how = RunSettings(
        resolution=size, control_resolution="target", precision="int8", gradient_checkpointing="on", **settings
    )
    plan = replace(make_plan(model, params, how, assumed_gpu(80)), quantize_activations=False)
    components = ModelComponents(model, torch.device("cpu"), plan)
    build_trainable(components, params, how)
    shape = step_shape(model.family, params, how, plan)
    batch = next(random_batches(model.family, model.transformer_config(), shape))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            text = batch.texts[0].text
            return model.family.predict(components.transformer(), batch.clean, batch.controls, text, batch.sigmas, 1.0)

    found = kept_bytes(components.transformer(), forward)
    away = sum(found["parameters"].values()) - components.placement().device_bytes
    return {"flags": plan.line(), "parameters": sum(found["parameters"].values()) - away, "saved": found["saved"]}


def kept_bytes(transformer: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> dict:
    """Of parameters and buffers by name, and of what a forward pass saves beside them."""
    tensors = dict([*transformer.named_parameters(), *transformer.named_buffers()])
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    del kept
    return {
        "parameters": {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()},
        "saved": sum(saved.values()),
    }
