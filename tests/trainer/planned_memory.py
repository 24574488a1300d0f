"""Trains a reduced Kontext for some steps in a process of its own; prints what its plan says and what it took.

python -m tests.trainer.planned_memory SETTINGS_AS_JSON
"""

from __future__ import annotations

import ctypes
import json
import sys
from itertools import islice

import torch

from tests.benchmarks.synthetic import random_batches, random_model
from tests.trainer.loading_memory import Peak, anonymous_bytes
from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import query_device
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.planner import make_plan
from trainer.training.optim import build_optimizer
from trainer.training.step import micro_step
from trainer.training.trainable import build_trainable

CPU = torch.device("cpu")
M_MMAP_THRESHOLD, SMALL = -3, 128 * 1024
"""glibc's option, from its malloc.h, and a value for it: larger blocks go back to the system when they are freed. What
it holds on to otherwise says nothing of what was needed."""


def main() -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALL)
    settings = RunSettings(resolution=128, control_resolution="target", **json.loads(sys.argv[1]))
    params = TrainingParams(caption_column="c", control_image_column="b", image_column="a")
    blocks = 2 if settings.precision == "int8" else 1  # activations beside less than 100 MB of weights are not planned
    model = random_model(
        "black-forest-labs/FLUX.1-Kontext-dev", num_layers=blocks, num_single_layers=2 * blocks, num_attention_heads=6
    )
    plan = make_plan(model, params, settings, query_device(CPU))
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    components = ModelComponents(model, CPU, plan)
    trainable = build_trainable(components, params, settings)
    optimizer = build_optimizer(trainable.parameters, settings, 1e-4)
    shape = step_shape(model.family, params, settings, plan)
    for batch in islice(random_batches(model.family, model.transformer_config(), shape), 2):
        micro_step(components, batch, 1, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"planned": plan.bytes, "taken": peak.stop() - before, "parts": dict(plan.expected)}))


if __name__ == "__main__":
    main()
