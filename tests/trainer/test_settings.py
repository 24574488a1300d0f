"""Every run setting does what it says."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainer.config.settings import RunSettings, parse_settings
from trainer.device import DeviceInfo
from trainer.errors import BadInput
from trainer.events import Notice, Progress, Sample, Step
from trainer.memory.plan import Plan
from trainer.memory.planner import make_plan
from trainer.training import loop
from trainer.training.checkpoint import checkpoint_folders
from trainer.training.optim import learning_rate_at

PROMPT = {"ctrl_img_url": "", "prompt": "invert it"}


def rates(**settings) -> list[float]:
    return [learning_rate_at(step, 10, 1.0, RunSettings(**settings)) for step in range(1, 11)]


def test_schedules():
    assert rates() == [1.0] * 10
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert rates(lr_scheduler="linear") == pytest.approx([1 - n / 10 for n in range(10)])
    cosine = rates(lr_scheduler="cosine", warmup_steps=2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx((1 + np.cos(np.pi * 7 / 8)) / 2)


@pytest.mark.parametrize(
    "name", [name for name, field in RunSettings.model_fields.items() if field.annotation is float]
)
def test_numbers_that_overflow_are_refused(name):
    with pytest.raises(BadInput, match=rf"{name}: 1e.308 is too large, the maximum is "):
        parse_settings({name: 1e308})
    with pytest.raises(BadInput, match=rf"{name}: .* is too large, the maximum is "):
        parse_settings({name: 1e31})


def test_every_fault_of_the_settings_is_named_at_once():
    with pytest.raises(BadInput) as raised:
        parse_settings({"seed": "1", "max_grad_norm": -1, "compile": "yes", "colour": 3, "keep_checkpoints": 0})
    assert all(name in str(raised.value) for name in ("seed", "max_grad_norm", "compile", "colour", "keep_checkpoints"))
    assert "5 faults" in str(raised.value)


TRAININGS = [
    {},
    {"seed": 1},
    {"lora_targets": "attention"},
    {"lora_targets": "all-linear"},
    {"optimizer": "adafactor"},
    {"weight_decay": 5.0},
    {"max_grad_norm": 1e-4},
    {"lr_scheduler": "linear"},
    {"lr_scheduler": "cosine"},
    {"warmup_steps": 3},
    {"caption_dropout": 1.0},
    {"training_guidance": 4.0},
    {"resolution": 32},
    {"control_resolution": "target", "resolution": 32},
    {"precision": "bf16"},
]


@pytest.mark.slow
def test_settings_that_change_the_training(kontext, runs):
    seen = {}
    for number, settings in enumerate(TRAININGS):
        name = f"run{number}"
        runs.run(kontext, name, steps=3, learning_rate=0.01, settings=settings)
        state = json.loads((runs.folder / name / "run.json").read_text())
        seen[str(settings)] = runs.losses(name), state["fingerprint"]
    for (first, one), (second, other) in combinations(seen.items(), 2):
        assert one[0] != other[0], f"{first} and {second} give the same losses"
        assert one[1] != other[1], f"{first} and {second} give the same fingerprint"


CHANGES = [("gradient_checkpointing", "on"), ("offload", "phases"), ("offload", "blocks"), ("keep_checkpoints", 2)]


@pytest.mark.slow
def test_settings_that_do_not(kontext, runs):
    def trained(name: str, settings: dict) -> tuple[Plan, int]:
        """How it was trained: the plan, and the number of checkpoints kept."""
        runs.run(kontext, name, steps=3, learning_rate=0.01, settings=settings)
        params, device = (
            runs.request(kontext).training_params,
            DeviceInfo(kind="cpu", free=2**40, host=2**40, bf16=False),
        )
        kept = checkpoint_folders(runs.folder / name / "checkpoints")
        return replace(make_plan(kontext, params, RunSettings(**settings), device), expected={}), len(kept)

    plain = {"gradient_checkpointing": "off", "offload": "none", "keep_checkpoints": 1}
    one, weights = trained("plain", plain), runs.weights("plain")
    for setting, value in CHANGES:
        name = f"{setting} {value}"
        # Streamed blocks are checkpointed.
        others = {} if value == "blocks" else plain
        assert trained(name, others | {setting: value}) != one
        assert runs.losses(name) == pytest.approx(runs.losses("plain"), rel=1e-6)
        other = runs.weights(name)
        assert all(torch.equal(tensor, other[key]) for key, tensor in weights.items()), name


@pytest.mark.slow
def test_dropped_captions_are_addressed_and_as_many_as_asked_for(kontext, runs, monkeypatch):
    batches = []
    real = loop.micro_step
    monkeypatch.setattr(loop, "micro_step", lambda *a: (batches.append(a[1]), real(*a))[1])
    runs.write(pairs=40)
    runs.run(kontext, steps=40, settings={"caption_dropout": 0.5})
    encoder = kontext.load_text_encoder("cpu", torch.float32)
    empty = encoder.encode("", [])["prompt_embeds"]
    dropped = sum(torch.equal(batch.texts[0].text["prompt_embeds"], empty) for batch in batches)
    assert 10 <= dropped <= 30


@pytest.mark.slow
def test_samples_follow_their_settings(kontext, runs):
    def drawn(name, **settings):
        events = runs.run(kontext, name, steps=1, samples=[PROMPT], settings=settings)
        images = [np.asarray(event.image) for event in events if isinstance(event, Sample)]
        sampler_steps = sum(isinstance(event, Progress) and event.phase == "sampling" for event in events)
        return images[-1], sampler_steps

    usual, steps = drawn("usual")
    assert steps == 2 * 2
    more, steps = drawn("steps", sample_steps=5)
    assert steps == 2 * 5
    for other in (more, drawn("seed", sample_seed=1)[0], drawn("guidance", sample_guidance=5.0)[0]):
        assert np.any(other != usual)


def test_checkpoint_settings(kontext, runs):
    runs.run(kontext, steps=7, sample_every=100, settings={"checkpoint_every": 2, "keep_checkpoints": 2})
    names = [path.name for path in checkpoint_folders(runs.folder / "run" / "checkpoints")]
    assert names == ["step-000006", "step-000007"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_save_dtype(kontext, runs, name, dtype):
    runs.run(kontext, steps=1, settings={"save_dtype": name})
    with safe_open(runs.folder / "run" / "run-000001.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in list(file.keys())} == {dtype}


@pytest.mark.slow
def test_save_layout_adds_a_folder_that_diffusers_loads(model, runs):
    settings = {"save_layout": "single_file+diffusers", "save_dtype": "fp32"}
    runs.run(model, steps=1, use_lora=False, settings=settings)
    folder = runs.folder / "run" / "run-000001"
    transformer = model.family.transformer.from_pretrained(folder, subfolder="transformer")
    file = model.with_weights(folder.with_suffix(".safetensors")).load_transformer("cpu", torch.float32)
    state = file.state_dict()
    assert transformer.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in transformer.state_dict().items())


@pytest.mark.slow
def test_resolution_makes_buckets_of_that_area(kontext, runs):
    runs.write(size=(128, 64))
    events = runs.run(kontext, steps=1, settings={"resolution": 128})
    assert not any(isinstance(event, Notice) for event in events)
    # 128 x 128 pixels of area at about 2:1, 16 to a token
    seen = []
    real = loop.micro_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "micro_step", lambda *a: (seen.append(a[1].clean.grid), real(*a))[1])
        runs.run(kontext, "again", steps=1, settings={"resolution": 128})
    ((height, width),) = set(seen)
    assert width > height
    assert 50 <= width * height <= 78


def test_targets_smaller_than_their_control_are_warned_of(kontext, runs):
    events = runs.run(kontext, steps=1, settings={"resolution": 32})
    (warning,) = [event.message for event in events if isinstance(event, Notice)]
    assert "6 of 6 targets" in warning


@pytest.mark.slow
def test_images_root(kontext, runs):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = runs.folder / "elsewhere" / "pictures"
    pictures.mkdir(parents=True)
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), color).save(pictures / name)
    pq.write_table(pa.table({"words": ["x"], "before": ["a.png"], "after": ["b.png"]}), runs.parquet)
    with pytest.raises(BadInput, match=r"a\.png"):
        runs.run(kontext, steps=1)
    events = runs.run(kontext, steps=1, settings={"images_root": str(pictures)})
    assert any(isinstance(event, Step) for event in events)
