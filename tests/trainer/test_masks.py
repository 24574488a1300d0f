"""The masked loss: where it counts, how masks come to tokens, and the loss that keeps what is outside."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainer.config.columns import Columns
from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.distributed.processes import SingleProcess
from trainer.encoding.encoder import Encoder
from trainer.errors import BadInput
from trainer.events import Started, drain
from trainer.training import step
from trainer.training.flow_matching import example_losses, mask_weights
from trainer.training.loop import prepare, train
from trainer.training.setup import open_run

from .conftest import png

MASKED = {"mask_column": "where"}


def half(side: str, size: tuple[int, int] = (64, 64)) -> bytes:
    """A mask that is white on one side: left, right, or none of it, or all."""
    picture = Image.new("L", size, 255 if side == "all" else 0)
    width, height = size
    boxes = {"left": (0, 0, width // 2, height), "right": (width // 2, 0, width, height)}
    if side in boxes:
        picture.paste(255, boxes[side])
    return png(picture)


def with_masks(runs: Any, masks: list[bytes | None]) -> Path:
    """The usual pairs with a column of masks."""
    table = pq.read_table(runs.write(len(masks)))
    pq.write_table(table.append_column("where", pa.array(masks, pa.binary())), runs.parquet)
    return runs.parquet


def masked_events(runs: Any, model: Any, name: str = "run", settings: dict | None = None, **params: Any) -> Any:
    """A run whose dataset is opened with the settings' mask column, as the command line does."""
    options = parse_settings({"sample_steps": 2} | (settings or {}))
    request = runs.request(model, **params)
    columns = Columns("words", ("before",), "after", options.mask_column)
    dataset = drain(open_dataset(runs.parquet, columns, bad_rows=options.bad_rows))
    return train(request, dataset, model, options, run_dir=runs.folder / name, cache_dir=runs.cache)


def test_weights_have_mean_one_and_a_floor():
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = mask_weights(mask, 0.0)
    assert weights.tolist() == [[2.0, 2.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    raised = mask_weights(mask, 0.5)
    assert raised.mean(1).tolist() == pytest.approx([1, 1, 1])
    assert (raised[0, 0] / raised[0, 3]).item() == pytest.approx(2)
    assert raised[2].tolist() == [1.0] * 4


def test_without_token_weights_the_loss_is_what_it_was():
    velocity, clean, noise = torch.randn(3, 2, 4, 8).unbind()
    plain = ((velocity - (noise - clean)) ** 2).flatten(1).mean(1)
    assert torch.equal(example_losses(velocity, clean, noise, torch.ones(2)), plain)
    even = example_losses(velocity, clean, noise, torch.ones(2), torch.ones(2, 4))
    assert torch.equal(even, plain)


@pytest.mark.slow
@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_the_gradient_outside_of_a_mask_is_zero(model, runs, monkeypatch, prior):
    """Of the prediction, by the loss of the mask alone: with a prior, the rest has only the prior's gradient."""
    with_masks(runs, [half("left"), half("right"), None])
    gradients, bases, losses = [], [], step.example_losses
    real_base = step._base_velocity

    def watch(velocity: torch.Tensor, *rest: Any) -> torch.Tensor:
        velocity.retain_grad()
        gradients.append((velocity, rest[-1]))
        return losses(velocity, *rest)

    def look(*inputs: Any) -> torch.Tensor:
        bases.append(real_base(*inputs))
        return bases[-1]

    monkeypatch.setattr(step, "example_losses", watch)
    monkeypatch.setattr(step, "_base_velocity", look)
    list(masked_events(runs, model, settings=MASKED | {"mask_prior": prior}, steps=6, learning_rate=0.01))
    assert len(gradients) == 6
    halves = set()
    for velocity, weights in gradients:
        inside, side = weights[0] > 0, round(weights.shape[1] ** 0.5)
        gradient = velocity.grad[0]
        if inside.all():
            continue
        columns = inside.view(side, side)
        halves.add(bool(columns[:, : side // 2].all()))
        assert columns.sum() == columns.numel() // 2
        assert gradient[inside].abs().min(1).values.max() > 0
        if not prior:
            assert not gradient[~inside].any()
    assert halves == {True, False}
    assert len(bases) == (6 if prior else 0)
    if prior:
        (first, _), base = gradients[0], bases[0]
        assert torch.equal(first.detach(), base), "a new LoRA changes nothing yet"
        assert not torch.equal(gradients[-1][0].detach(), bases[-1])
        inside = gradients[-1][1][0] > 0
        if not inside.all():
            assert gradients[-1][0].grad[0][~inside].any()


@pytest.mark.slow
def test_white_masks_and_a_minimum_of_one_train_as_without(kontext, runs):
    with_masks(runs, [half("all"), None, half("all")])
    list(masked_events(runs, kontext, "plain"))
    list(masked_events(runs, kontext, "white", settings=MASKED))
    assert runs.losses("white") == runs.losses("plain")
    with_masks(runs, [half("left"), half("none"), half("right")])
    list(masked_events(runs, kontext, "floor", settings=MASKED | {"mask_min": 1.0}))
    assert runs.losses("floor") == pytest.approx(runs.losses("plain"), rel=1e-6)
    with_masks(runs, [half("left"), half("left"), half("right")])
    list(masked_events(runs, kontext, "masked", settings=MASKED))
    assert runs.losses("masked") != runs.losses("plain")


def masks_of(runs: Any, model: Any, **settings: Any) -> list[torch.Tensor]:
    """The masks of all rows at the tokens, each [tokens, tokens of a side]."""
    options = parse_settings(settings)
    columns = Columns("words", ("before",), "after", options.mask_column)
    dataset = drain(open_dataset(runs.parquet, columns))
    with ExitStack() as held:
        opening = open_run(
            runs.request(model), dataset, model, options, SingleProcess(), held,
            run_dir=runs.folder / "masks", cache_dir=runs.cache,
        )  # fmt: skip
        context = drain(opening)
        training = drain(prepare(context))
    encoder: Encoder = training.loader.encoder
    found = []
    for example in training.loader.examples:
        clean = encoder.family.pack(encoder.latents(example.target))
        mask = encoder.masks.get(example.mask) if example.mask else torch.ones(1, clean.tokens.shape[1])
        assert mask.shape == clean.tokens.shape[:2]
        found.append(mask.view(clean.grid))
    return found


@pytest.mark.slow
def test_masks_come_to_tokens_as_the_target_does(model, runs):
    grey = Image.new("L", (64, 64), 0)
    grey.paste(255, (0, 0, 8, 16))  # half of the first token
    grey.paste(102, (48, 48, 64, 64))  # two fifths of white in the last
    with_masks(runs, [half("left"), png(grey), None, half("right", (32, 32))])
    left, few, whole, right = masks_of(runs, model, **MASKED)
    assert left[:, :2].eq(1).all() and not left[:, 2:].any()
    assert few[0, 0].item() == pytest.approx(0.5, abs=0.01)
    assert few[-1, -1].item() == pytest.approx(0.4, abs=0.01)
    assert few.sum().item() == pytest.approx(0.9, abs=0.02)
    assert whole.eq(1).all()
    assert right.shape == left.shape
    assert right[:, 2:].mean() > 0.95 and right[:, :2].mean() < 0.05


@pytest.mark.slow
def test_what_is_transparent_in_a_mask_is_black(kontext, runs):
    painted = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), (0, 0, 32, 64))
    grey, paletted = painted.convert("LA"), painted.quantize(4)
    with_masks(runs, [*map(png, (painted, grey, paletted)), half("left")])
    *found, expected = masks_of(runs, kontext, **MASKED)
    assert all(torch.equal(mask, expected) for mask in found)


@pytest.mark.slow
def test_a_mask_that_counts_nowhere_is_a_bad_row(kontext, runs):
    black = png(Image.new("L", (64, 64)))
    with_masks(runs, [half("left"), black, half("left")])
    for name in ("made", "cached"):
        with pytest.raises(BadInput, match='row 1, column "where": the mask is black everywhere'):
            list(masked_events(runs, kontext, name, settings=MASKED))
    (started,) = [
        event
        for event in masked_events(runs, kontext, "skipped", settings=MASKED | {"bad_rows": "skip"})
        if isinstance(event, Started)
    ]
    assert started.examples == 2
    for more in ({"mask_min": 0.1}, {"mask_prior": 0.5}):
        (started,) = [
            event
            for event in masked_events(runs, kontext, next(iter(more)), settings=MASKED | more)
            if isinstance(event, Started)
        ]
        assert started.examples == 3


@pytest.mark.slow
def test_the_mask_of_a_difference_is_where_the_pictures_differ(kontext, runs):
    runs.write(3)
    table = pq.read_table(runs.parquet)
    before = Image.open(io.BytesIO(table["before"][0].as_py())).convert("RGB")
    after = before.copy()
    after.paste((255, 255, 255), (32, 0, 64, 64))
    after.paste((0, 0, 0), (48, 0, 64, 64))
    nearly = before.point(lambda value: min(255, value + 2))
    columns = {
        "before": [png(before)] * 3,
        "words": ["a", "b", "c"],
        "after": [*map(png, (after, nearly, before))],
    }
    pq.write_table(pa.table(columns), runs.parquet)
    half_changed, noise, same = masks_of(runs, kontext, mask="difference")
    assert half_changed[:, 2:].eq(1).all()
    assert not half_changed[:, :2].any()
    assert noise.eq(1).all() and same.eq(1).all(), "an edit that changes nothing counts everywhere"


@pytest.mark.slow
def test_the_mask_is_part_of_the_identity_and_the_other_keys_stay(kontext, runs):
    def fingerprints(column: str = "where") -> str:
        return drain(open_dataset(runs.parquet, Columns("words", ("before",), "after", column))).fingerprint()

    with_masks(runs, [half("left")] * 3)
    list(masked_events(runs, kontext, "plain"))
    keys = {path.name for path in runs.cache.glob("??/*")}
    plain, first = fingerprints(""), fingerprints()
    list(masked_events(runs, kontext, "masked", settings=MASKED))
    more = {path.name for path in runs.cache.glob("??/*")} - keys
    assert len(more) == 1, "one mask, and nothing else is made again"
    with_masks(runs, [half("left"), half("right"), half("left")])
    assert fingerprints("") == plain
    assert fingerprints() != first
    (started,) = [e for e in masked_events(runs, kontext, "masked", settings=MASKED) if isinstance(e, Started)]
    assert started.run_dir.name == "masked-2"


@pytest.mark.slow
def test_a_damaged_mask_is_made_again(kontext, runs):
    with_masks(runs, [half("left")] * 3)
    list(masked_events(runs, kontext, "first", settings=MASKED))
    keys = {path for path in runs.cache.glob("??/*") if path.stat().st_size < 1024}
    for path in keys:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    list(masked_events(runs, kontext, "second", settings=MASKED))
    assert runs.losses("first") == runs.losses("second")


@pytest.mark.parametrize(
    ("settings", "params", "words"),
    [
        ({"mask": "difference", "mask_column": "where"}, {}, 'mask: "difference" makes masks itself'),
        ({"mask_prior": 0.5}, {}, "mask_prior: needs masks"),
        ({"mask_min": 0.5}, {}, "mask_min: needs masks"),
        ({"mask_prior": 0.5, "mask": "difference"}, {"use_lora": False}, "mask_prior: keeps what the base draws"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kontext, runs, settings, params, words):
    with_masks(runs, [half("left")] * 3)
    with pytest.raises(BadInput, match=words):
        list(masked_events(runs, kontext, settings=settings, **params))


def test_a_dataset_opened_without_the_column_is_refused(kontext, runs):
    with pytest.raises(BadInput, match='mask_column: is "where", but the dataset was opened with ""'):
        runs.run(kontext, settings=MASKED)


def test_bad_masks_are_named(kontext, runs):
    with_masks(runs, [half("left"), b"no picture", half("left", (64, 32))])
    with pytest.raises(BadInput, match='row 1, column "where"'):
        list(masked_events(runs, kontext, settings=MASKED))
    with_masks(runs, [half("left"), half("left"), half("left", (64, 32))])
    with pytest.raises(BadInput, match='row 2, column "where": the mask has 64 x 32 pixels and the target 64 x 64'):
        list(masked_events(runs, kontext, settings=MASKED))
    with pytest.raises(BadInput, match=r'mask_column: "when" is not a column .*did you mean "where"'):
        list(masked_events(runs, kontext, settings={"mask_column": "when"}))
    with pytest.raises(BadInput, match=r'mask_column: "after" is also the image_column|image_column: "after" is also'):
        list(masked_events(runs, kontext, settings={"mask_column": "after"}))


def test_settings_of_masks_stand_in_the_fingerprint_and_the_header(kontext, runs):
    recorded = json.loads(parse_settings(MASKED | {"mask_prior": 0.5}).model_dump_json())
    assert (recorded["mask_column"], recorded["mask_prior"]) == ("where", 0.5)
    assert (
        parse_settings({})
        .recorded_for_training()
        .keys()
        .isdisjoint({"mask", "mask_column", "mask_min", "mask_prior", "validation_rows", "ema_decay"})
    )
    assert parse_settings(MASKED).recorded_for_training()["mask_column"] == "where"
