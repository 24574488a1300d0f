"""Loads a large single file in a process of its own and prints what host memory that took at its peak.

python loading_memory.py FILE fp32|bf16 [PRECISION]
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch

from trainer.models.edit_model import open_model
from trainer.models.model_files import ModelFiles
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


def main() -> None:
    model = open_model("black-forest-labs/FLUX.1-Kontext-dev", files=ModelFiles(transformer=Path(sys.argv[1])))
    assert model.family
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    transformer = model.load_transformer(torch.device("cpu"), DTYPES[sys.argv[2]], *sys.argv[3:])
    tensors = [*transformer.parameters(), *transformer.buffers()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    print(json.dumps({"before": before, "peak": peak.stop(), "held": held}))


if __name__ == "__main__":
    main()
