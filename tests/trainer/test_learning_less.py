"""What held-out rows and masks are for, on an embedded model: when to stop, and where not to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.cli.demo import _edited, psnr
from trainer.config.columns import Columns
from trainer.config.request import parse_request
from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.events import Finished, Notice, Step, Validation, drain
from trainer.models.edit_model import EditModel, open_model
from trainer.tiny.requests import make_request
from trainer.tiny.shapes import EditPair, make_pairs, png_bytes, write_parquet
from trainer.training.loop import train

from .conftest import png

pytestmark = pytest.mark.slow

BASE_MODEL = "tiny/flux-kontext"


def trained(folder: Path, parquet: Path, params: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
    """The events of a run of the embedded model."""
    request = make_request(BASE_MODEL, parquet, {"sample_every": 10**6, "samples": []} | params)
    options = parse_settings({"cache_text_embeddings": True, "checkpoint_every": 10**6} | settings)
    parsed = parse_request(request)
    columns = parsed.training_params.columns
    masked = Columns(columns.caption, columns.controls, columns.image, options.mask_column)
    dataset = drain(open_dataset(parquet, masked))
    return list(train(parsed, dataset, open_model(BASE_MODEL), options, run_dir=folder, cache_dir=parquet.parent / "c"))


def drawn(model: EditModel, pairs: Sequence[EditPair]) -> list[Image.Image]:
    return drain(_edited(model, pairs, parse_settings({"sample_steps": 10})))


SIDE, MASKED_STEPS = 32, 120


def outside(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [image.crop((SIDE, 0, *image.size)) for image in images]


def inside(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [image.crop((0, 0, SIDE, image.height)) for image in images]


def mean_psnr(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    return float(np.mean([psnr(one, other) for one, other in zip(images, others, strict=True)]))


def test_a_prior_keeps_the_outside_as_the_base_draws_it(tmp_path):
    """All of the target is inverted; the masks are white on the left."""
    write_parquet(tmp_path / "whole.parquet", ["invert"], 1, 24)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, SIDE, 64))
    table = pq.read_table(tmp_path / "whole.parquet")
    parquet = tmp_path / "pairs.parquet"
    pq.write_table(table.append_column("mask", pa.array([png(mask)] * len(table))), parquet)
    params = {"steps": MASKED_STEPS, "batch_size": 8, "learning_rate": 0.008}
    pairs = list(make_pairs(["invert"], 2, 8))
    base = open_model(BASE_MODEL)
    before = drawn(base, pairs)
    found = {}
    for name, settings in {"plain": {}, "kept": {"mask_column": "mask", "mask_prior": 0.5}}.items():
        finished = trained(tmp_path / name, parquet, params, settings)[-1]
        assert isinstance(finished, Finished)
        images = drawn(base.with_adapter(finished.weights), pairs)
        found[name] = (
            mean_psnr(outside(images), outside(before)),
            mean_psnr(inside(images), inside([pair.target for pair in pairs])),
        )
    assert found["kept"][0] > found["plain"][0] + 6
    assert found["kept"][1] > mean_psnr(inside(before), inside([pair.target for pair in pairs])) + 6


CAPTION, BLOT = "make it red", 24


def red_pairs(seed: int, count: int) -> list[EditPair]:
    return [pair for pair in make_pairs(["recolor"], seed, 40 * count) if pair.caption == CAPTION][:count]


def blotted(image: Image.Image, seed: int) -> Image.Image:
    """The image with a patch of a random colour at a random place, as pairs differ in what is no part of the edit."""
    random, image = Random(seed), image.copy()
    left, top = (random.randrange(image.width - BLOT) for _ in range(2))
    color = tuple(random.randrange(256) for _ in range(3))
    image.paste(color, (left, top, left + BLOT, top + BLOT))
    return image


def test_the_best_checkpoint_of_eight_pairs_beats_the_last(tmp_path):
    """The held-out loss turns while the training loss falls; the best LoRA edits pairs that no run has seen better."""
    rows = red_pairs(1, 20)
    columns = {
        "caption": [CAPTION] * len(rows),
        "control": [png_bytes(pair.control) for pair in rows],
        "target": [png_bytes(blotted(pair.target, seed)) for seed, pair in enumerate(rows)],
    }
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    params = {"steps": 240, "batch_size": 4, "learning_rate": 0.001}
    held_out = {"validation_rows": 12.0, "validate_every": 20}
    events = trained(tmp_path / "run", tmp_path / "pairs.parquet", params, held_out)
    curve = {event.step: event.loss for event in events if isinstance(event, Validation)}
    losses = [event.loss for event in events if isinstance(event, Step)]
    best = min(curve, key=lambda step: curve[step])
    assert 0 < best < 120
    assert curve[240] > 1.2 * curve[best]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[best - 20 : best])
    assert any("memorizes its examples" in event.message for event in events if isinstance(event, Notice))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_weights is not None
    unseen, base = red_pairs(2, 32), open_model(BASE_MODEL)
    assert len(unseen) == 32
    targets = [pair.target for pair in unseen]
    scores = {
        name: mean_psnr(drawn(base.with_adapter(path), unseen), targets)
        for name, path in (("best", finished.best_weights), ("last", finished.weights))
    }
    assert scores["best"] > scores["last"] + 0.2, scores
