"""What the loop costs on top of the bare work. Run from the repository's root: python tests/benchmarks/loop_overhead.py

Trains a LoRA on `tiny/flux-kontext` through `train()`. After every few steps it does forward, backward and optimizer
step once more in a bare loop, on the same transformer and the same tensors. Prints both medians and their ratio; the
aim is at most 1.05 at a bare step of 200 ms or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from trainer.config.columns import Columns
from trainer.config.settings import RunSettings
from trainer.data.dataset import open_dataset
from trainer.data.load_request import load_request
from trainer.events import Step, drain
from trainer.models.edit_model import open_model
from trainer.models.types import PackedLatents
from trainer.tiny.shapes import TAUGHT_EDITS, write_parquet
from trainer.training import loop

BLOCK = 6
"""Steps of the run between two pieces of the bare loop."""


def bare_step(components, batch, optimizer) -> float:
    """Seconds of forward, backward and optimizer step on tensors that are ready."""
    sigmas = batch.sigmas.view(-1, 1, 1)
    clean = batch.clean.tokens
    noisy = PackedLatents((1 - sigmas) * clean + sigmas * batch.noise, batch.clean.grid)
    target = batch.noise - clean
    begun = time.perf_counter()
    family, text = components.model.family, batch.texts[0].text
    velocity = family.predict(components.transformer(), noisy, batch.controls, text, batch.sigmas, 1.0)
    ((velocity - target) ** 2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seen = []
    real = loop.micro_step

    def watch(components, batch, *rest):
        seen.append((components, batch))
        return real(components, batch, *rest)

    loop.micro_step = watch
    with tempfile.TemporaryDirectory() as folder:
        parquet = Path(folder) / "pairs.parquet"
        write_parquet(parquet, TAUGHT_EDITS[:1], 1, 4 * options.batch_size)
        columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
        params = {
            "batch_size": options.batch_size,
            "steps": options.steps,
            "sample_every": options.steps,
            "samples": [],
            "cache_text_embeddings": True,
        }
        request, _ = load_request(
            {
                "resource": str(parquet),
                "base_model": "tiny/flux-kontext",
                "script_type": "image_editing",
                "training_params": columns | params,
            }
        )
        dataset = drain(open_dataset(parquet, Columns.from_fields(columns)))
        settings = RunSettings(checkpoint_every=options.steps)
        model = open_model(request.base_model)
        ours, bare = [], []
        begun, optimizer = 0.0, None
        for event in loop.train(request, dataset, model, settings, run_dir=Path(folder) / "run"):
            if not isinstance(event, Step) or event.step % BLOCK:
                continue
            if optimizer is None:  # the first block warms up
                trained = [p for p in seen[0][0].transformer().parameters() if p.requires_grad]
                optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
                bare_step(*seen[0], optimizer)
            else:
                ours.append((time.perf_counter() - begun) / BLOCK)
                bare.append(
                    statistics.mean(bare_step(components, batch, optimizer) for components, batch in seen[-BLOCK:])
                )
            begun = time.perf_counter()
        dataset.close()
    ours, bare = map(statistics.median, (ours, bare))
    print(f"step of the loop {1000 * ours:.1f} ms, bare step {1000 * bare:.1f} ms, ratio {ours / bare:.3f}")


if __name__ == "__main__":
    main()
