"""Loads a large single file in a process of its own and prints what host memory that took at its peak.

python -m tests.trainer.loading_memory FILE fp32|bf16 [PRECISION [PLACED]]

With a fourth argument the transformer is placed on `meta`, in place of a card: every second block is streamed, and the
modulation stays in host memory.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from trainer.config.settings import Precision
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel, open_model
from trainer.models.model_files import ModelFiles
from trainer.modules import blocks_of
from trainer.tensors import DTYPES


def anonymous_bytes() -> int:
    """Resident memory of this process that is not a file's (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """Looks at the memory two hundred times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return max(self.bytes, anonymous_bytes())


def placed(model: EditModel, dtype: torch.dtype, precision: Precision) -> nn.Module:
    """The transformer, loaded and placed as a run does it."""
    blocks = len(blocks_of(model.empty_transformer()))
    plan = Plan(
        precision=precision,
        dtype=dtype,
        offload="auto",
        modulation_on_host=True,
        streamed=frozenset(range(0, blocks, 2)),
        activation_checkpointing=("full",) * blocks,
    )
    return ModelComponents(model, torch.device("meta"), plan).transformer()


def main() -> None:
    file, dtype, *how = sys.argv[1:]
    model = open_model("black-forest-labs/FLUX.1-Kontext-dev", files=ModelFiles(transformer=Path(file)))
    assert model.family
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    if len(how) > 1:
        transformer = placed(model, DTYPES[dtype], how[0])
    else:
        transformer = model.load_transformer(torch.device("cpu"), DTYPES[dtype], *how)
    tensors = [*transformer.parameters(), *transformer.buffers()]
    held = sum(tensor.nbytes for tensor in tensors if tensor.device.type == "cpu")
    total = sum(tensor.nbytes for tensor in tensors)
    print(json.dumps({"before": before, "peak": peak.stop(), "held": held, "total": total}))


if __name__ == "__main__":
    main()
