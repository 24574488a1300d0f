"""Seconds that a sampling spends on the exported values of a full-size LoRA, on the CPU.

Run from the repository's root: python tests/benchmarks/export.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from trainer.lora.adapter import LoraAdapter
from trainer.lora.layer import LoraLinear
from trainer.models.edit_model import open_model

MODELS = ("Qwen/Qwen-Image-Edit", "black-forest-labs/FLUX.1-Kontext-dev")
ROUNDS = 5


def full_size_adapter(base_model: str, rank: int) -> LoraAdapter:
    """A LoRA of the published model's shapes, on a transformer whose other weights have no storage."""
    model = open_model(base_model)
    transformer = model.empty_transformer()
    adapter = LoraAdapter(transformer, model.family.lora_targets("attention+mlp", transformer), rank, rank, seed=0)
    for layer in transformer.modules():
        if isinstance(layer, LoraLinear):
            for matrix in (layer.lora_A, layer.lora_B):
                matrix.weight = torch.nn.Parameter(torch.ones(matrix.weight.shape))
    adapter.parameters = {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}
    return adapter


def seconds(adapter: LoraAdapter) -> float:
    """Time the way into the context and out of it; the median of `ROUNDS`."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with adapter.exported_values(torch.bfloat16):
            pass
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    for base_model in MODELS:
        for rank in (1, 16):
            adapter = full_size_adapter(base_model, rank)
            values = sum(parameter.numel() for parameter in adapter.parameters.values())
            print(
                f"{base_model}, rank {rank}: {len(adapter.parameters)} tensors, {values / 1e6:.0f} million values, "
                f"{seconds(adapter):.3f} s"
            )
