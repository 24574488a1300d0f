"""Bytes, kernels and assumed seconds of a training step, counted on a fake card: see tests/fake_cuda/step_work.py.

python -m tests.benchmarks.traffic [--plain] [--side 1024]
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.fake_cuda import shim

PLANS: dict[str, dict[str, Any]] = {
    "int8 products, selective": {"precision": "int8", "gradient_checkpointing": "selective"},
    "int8 products, full": {"precision": "int8", "gradient_checkpointing": "on"},
    "bf16, nothing recomputed": {"precision": "bf16", "gradient_checkpointing": "off"},
}


def main() -> None:
    """Print the tables."""
    shim.load()  # before torch
    from tests.fake_cuda.runs import NAMES
    from tests.fake_cuda.step_work import CARDS, full_depth
    from trainer.config.settings import RunSettings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="side of the images in pixels")
    parser.add_argument("--plain", action="store_true", help="without a compiler")
    parser.add_argument("--details", action="store_true", help="bytes and kernels of every kind")
    arguments = parser.parse_args()
    for which in NAMES:
        for name, levers in PLANS.items():
            settings = RunSettings(resolution=arguments.side, control_resolution="target", **levers)
            work = full_depth(which, settings, not arguments.plain)
            row = ", ".join(f"{key} {value:.0f}" for key, value in work.table().items())
            print(f"{which} {arguments.side} {name}: {row} (GB)", flush=True)
            for card, rates in CARDS.items():
                parts = work.seconds(rates)
                sums = " + ".join(f"{part} {value:.2f}" for part, value in parts.items())
                print(f"    {card}: {sum(parts.values()):.2f} s = {sums}")
            if arguments.details:
                for kind, size in work.bytes.most_common():
                    print(f"        {kind}: {size / 1e9:.1f} GB, {work.kernels[kind]} kernels")


if __name__ == "__main__":
    main()
