"""The plans of both models for cards of all sizes, as the table in docs/memory.md has them.

Run from the repository's root: python tests/benchmarks/plans.py

With --fake-cuda every row is trained and sampled at full depth on a fake card, and printed beside its plan. That takes
minutes a row; --rows TEXT takes the rows whose name has the text, such as "qwen 1024 on 24".
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__" and "--fake-cuda" in sys.argv:
    from tests.fake_cuda import shim

    shim.load()  # before torch

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import assumed_gpu
from trainer.memory.plan import Plan, gigabytes
from trainer.memory.planner import make_plan
from trainer.models.edit_model import open_model

MODELS = {"Qwen-Image-Edit": "Qwen/Qwen-Image-Edit", "FLUX.1 Kontext": "black-forest-labs/FLUX.1-Kontext-dev"}
RESOLUTIONS = (1024, 512)
CARDS = (80, 48, 32, 24, 16, 12)
HOST = 64
"""GB of free host memory."""
HEADER = (
    "| card | base | modulation | streamed | selective checkpointing | full checkpointing | "
    "weights | slots | LoRA | activations | workspace | reserve | total |"
)
PARTS = (
    "frozen weights",
    "slots for streamed blocks",
    "trained weights, gradients, optimizer",
    "activations",
    "workspace of the largest block",
    "driver and allocator",
)


def table(base_model: str, resolution: int) -> list[str]:
    """Lines of Markdown."""
    model = open_model(base_model)
    params = TrainingParams(caption_column="c", control_image_column="b", image_column="a")
    settings = RunSettings(resolution=resolution, control_resolution="target")
    lines = [HEADER, "|---" * HEADER.count(" | ") + "|---|"]
    return lines + [row(gb, make_plan(model, params, settings, assumed_gpu(gb, HOST))) for gb in CARDS]


def title(name: str, resolution: int) -> str:
    """Heading of a table."""
    return f"{name}, {resolution} x {resolution} from {resolution} x {resolution}"


def row(gb: int, plan: Plan) -> str:
    """One card's plan."""
    blocks = len(plan.activation_checkpointing)
    cells = [
        f"{gb} GB",
        plan.precision,
        "host" if plan.modulation_on_host else "card",
        f"{len(plan.streamed)} of {blocks}",
        str(plan.activation_checkpointing.count("selective")),
        f"{plan.activation_checkpointing.count('full')}{', inputs on host' if plan.inputs_on_host else ''}",
        *(gigabytes(plan.expected.get(part, 0)) for part in PARTS),
        gigabytes(plan.bytes),
    ]
    return f"| {' | '.join(cells)} |"


def on_fake_cuda(text: str) -> None:
    """Train and sample the rows whose name has this text."""
    from tests.fake_cuda.rows import Row

    for family in ("qwen", "kontext"):
        for resolution in RESOLUTIONS:
            for gb in CARDS:
                lines = Row(family, resolution, gb, HOST).lines()
                if text in (name := next(lines)):
                    print("\n".join([name, *lines]), flush=True)


if __name__ == "__main__" and "--fake-cuda" in sys.argv:
    on_fake_cuda(sys.argv[sys.argv.index("--rows") + 1] if "--rows" in sys.argv else "")
elif __name__ == "__main__":
    for name, base_model in MODELS.items():
        for resolution in RESOLUTIONS:
            print(f"\n{title(name, resolution)}\n")
            print("\n".join(table(base_model, resolution)))
