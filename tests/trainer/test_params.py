"""Every field of training_params does what it says; each test fails when its field is ignored."""

import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.events import Checkpoint, Notice, Progress, Sample, Step
from trainer.models.edit_model import EditModel
from trainer.single_file.key_mapping import to_stored
from trainer.training import loop
from trainer.training.flow_matching import draw_sigmas, loss_weights
from trainer.training.rng import example_generator

PROMPT = {"ctrl_img_url": "", "prompt": "invert it"}


@pytest.fixture
def batches(monkeypatch):
    """The micro-batches that a run trains on, as they pass by."""
    seen = []
    real = loop.micro_step

    def watch(components, batch, *rest):
        seen.append(batch)
        return real(components, batch, *rest)

    monkeypatch.setattr(loop, "micro_step", watch)
    return seen


def add_column(runs, name: str, other: str) -> None:
    """Put a second column into the parquet: the cells of `other` in reverse order."""
    table = pq.read_table(runs.parquet)
    pq.write_table(table.append_column(name, table[other].take(list(range(len(table)))[::-1])), runs.parquet)


def test_batch_size(kontext, runs, batches):
    runs.run(kontext, steps=2, batch_size=3)
    assert [len(batch.examples) for batch in batches] == [3, 3]
    assert [batch.clean.tokens.shape[0] for batch in batches] == [3, 3]


@pytest.mark.slow
def test_gradient_accumulation(kontext, runs, batches):
    events = runs.run(kontext, steps=2, gradient_accumulation=3)
    assert len(batches) == 6
    training = [event for event in events if isinstance(event, Progress) and event.phase == "training"]
    assert [(event.done, event.total) for event in training] == [(n, 6) for n in range(1, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("column", ["caption_column", "control_image_column", "image_column"])
def test_columns(model, runs, column):
    runs.write()
    usual = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
    add_column(runs, "other", usual[column])
    runs.run(model, "usual", steps=2)
    runs.run(model, "other", steps=2, **{column: "other"})
    assert runs.losses("usual") != runs.losses("other")


@pytest.mark.slow
def test_cache_text_embeddings_lets_the_encoder_go_for_the_whole_run(model, runs, monkeypatch):
    loaded = []
    real = EditModel.load_text_encoder

    def watch(self, *arguments):
        encoder = real(self, *arguments)
        loaded.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(EditModel, "load_text_encoder", watch)

    def alive_while_training(cached: bool) -> list[bool]:
        loaded.clear()
        events = runs.events(model, f"cached-{cached}", cache_text_embeddings=cached, samples=[PROMPT])
        return [bool(loaded and loaded[-1]()) for event in events if isinstance(event, Step)]

    assert alive_while_training(True) == [False] * 4
    assert len(loaded) == 1
    assert alive_while_training(False) == [True] * 4


@pytest.mark.slow
def test_learning_rate(kontext, runs):
    rates = []
    for rate in (0.001, 0.004):
        events = runs.run(kontext, f"rate-{rate}", steps=1, learning_rate=rate, settings={"save_dtype": "fp32"})
        assert [event.learning_rate for event in events if isinstance(event, Step)] == [rate]
        moved = [t.abs().max().item() for n, t in runs.weights(f"rate-{rate}").items() if "lora_B" in n]
        rates.append(max(moved))  # AdamW's first step moves every weight by the rate
    assert rates == pytest.approx([0.001, 0.004], rel=1e-3)


def test_lora_rank(kontext, runs):
    runs.run(kontext, steps=1, lora_rank=5)
    assert {tensor.shape[0] for name, tensor in runs.weights().items() if "lora_A" in name} == {5}


@pytest.mark.slow
def test_sample_every(kontext, runs):
    events = runs.run(kontext, steps=7, sample_every=3, samples=[PROMPT])
    assert [event.step for event in events if isinstance(event, Sample)] == [0, 3, 6, 7]
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [3, 6, 7]


@pytest.mark.slow
def test_sample_width_and_height(model, runs):
    events = runs.run(model, steps=1, sample_width=96, sample_height=32, samples=[PROMPT])
    assert {event.image.size for event in events if isinstance(event, Sample)} == {(96, 32)}
    assert not any(isinstance(event, Notice) for event in events)


@pytest.mark.slow
def test_sample_sizes_that_cannot_be_made_are_rounded_and_said(kontext, runs):
    events = runs.run(kontext, steps=1, sample_width=1000, sample_height=1000, samples=[PROMPT])
    (warning,) = [event.message for event in events if isinstance(event, Notice)]
    assert "1000 x 1000" in warning
    assert "64 x 64" in warning
    assert {event.image.size for event in events if isinstance(event, Sample)} == {(64, 64)}


@pytest.mark.slow
def test_samples(model, runs):
    control = runs.folder / "own.png"
    Image.new("RGB", (64, 64), "orange").save(control)
    samples = [PROMPT, {"ctrl_img_url": str(control), "prompt": "turn it around"}]
    events = [e for e in runs.run(model, steps=1, samples=samples) if isinstance(e, Sample) and e.step == 1]
    assert [event.prompt for event in events] == ["invert it", "turn it around"]
    assert events[1].controls[0].getpixel((5, 5)) == (255, 165, 0)
    assert np.any(np.asarray(events[0].image) != np.asarray(events[1].image))
    other = [e for e in runs.run(model, "other", steps=1, samples=[PROMPT | {"prompt": "no"}]) if isinstance(e, Sample)]
    assert np.any(np.asarray(other[-1].image) != np.asarray(events[0].image))


@pytest.mark.slow
def test_default_samples_fall_back_to_the_dataset_and_say_so_once(kontext, runs, monkeypatch):
    from trainer.config.samples import DEFAULT_SAMPLES
    from trainer.errors import BadInput
    from trainer.training import sample_images as samples_module

    def unreachable(*_):
        raise BadInput("no such host")

    monkeypatch.setattr(samples_module, "fetch_control", unreachable)
    events = runs.run(
        kontext, steps=1, samples=[sample.model_dump() for sample in DEFAULT_SAMPLES], sample_width=64, sample_height=64
    )
    warnings = [event.message for event in events if isinstance(event, Notice)]
    assert len(warnings) == 1
    assert "dataset's" in warnings[0]
    drawn = [event for event in events if isinstance(event, Sample) and event.step == 1]
    assert len(drawn) == 2
    assert np.any(np.asarray(drawn[0].controls[0]) != np.asarray(drawn[1].controls[0]))


@pytest.mark.slow
def test_steps(kontext, runs):
    assert sum(isinstance(event, Step) for event in runs.run(kontext, steps=5)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("timestep_type", ["weighted", "sigmoid", "linear"])
def test_timestep_type(kontext, runs, batches, timestep_type):
    runs.run(kontext, steps=3, batch_size=2, timestep_type=timestep_type)
    for batch in batches:
        expected = [
            draw_sigmas(timestep_type, 1, example_generator(42, "timestep", 0, example.row))
            for example in batch.examples
        ]
        assert torch.equal(batch.sigmas, torch.cat(expected))
        assert torch.equal(batch.weights, loss_weights(timestep_type, batch.sigmas))
    uniform = torch.cat([batch.sigmas for batch in batches]) * 1000
    assert torch.equal(uniform.round(), uniform) == (timestep_type != "sigmoid")
    assert (torch.cat([batch.weights for batch in batches]) == 1).all() == (timestep_type != "weighted")


@pytest.mark.slow
def test_use_lora_false_trains_and_saves_the_whole_transformer(model, runs):
    runs.run(model, steps=2, use_lora=False, learning_rate=0.001)
    file = runs.folder / "run" / "run-000002.safetensors"
    saved = load_file(file)
    transformer = model.load_transformer("cpu", torch.float32)
    layout = model.family.layout(transformer)
    before = dict(to_stored(layout, transformer.state_dict()))
    assert saved.keys() == before.keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    moved = [name for name in saved if not torch.equal(saved[name], before[name].to(torch.bfloat16))]
    assert len(moved) > 0.5 * len(saved)
    trained = model.with_weights(file).load_transformer("cpu", torch.bfloat16)
    again = dict(to_stored(layout, trained.state_dict()))
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())
