"""Edits in one session: what is read again, and that the images are those of edits that load everything."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.errors import BadInput
from trainer.events import Finished, drain
from trainer.inference import edit
from trainer.memory import edit_session
from trainer.memory.edit_session import EditSession
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel
from trainer.modules import blocks_of

from ..opened_files import opened_files
from .conftest import shape_picture
from .lora_files import portable, random_pairs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")]


@pytest.fixture
def model(kontext: EditModel) -> EditModel:
    """One family: a session asks nothing of it."""
    return kontext


@pytest.fixture
def copied(model: EditModel, tmp_path: Path) -> EditModel:
    """The model in a folder that no other test reads."""
    assert model.folder is not None
    return replace(model, folder=shutil.copytree(model.folder, tmp_path / "model"))


def lora_file(model: EditModel, path: Path, seed: int, rank: int = 2) -> Path:
    transformer = model.empty_transformer()
    pairs = random_pairs(transformer, model.family.lora_targets("attention+mlp", transformer), rank=rank)
    path.parent.mkdir(exist_ok=True)
    save_file({name: seed * tensor for name, tensor in portable(pairs).items()}, path)
    return path


def drawn(model: EditModel, session: EditSession | None = None, prompt: str = "make it red") -> bytes:
    return drain(edit(model, shape_picture(1), prompt, steps=2, session=session)).tobytes()


def test_the_second_edit_reads_no_weights(copied: EditModel):
    session = EditSession()
    with opened_files(copied.folder) as opened:
        first = drawn(copied, session)
    assert opened, "the first one does"
    with opened_files(copied.folder) as opened:
        second = drawn(copied, session, "paint it blue")
    assert not opened
    assert (first, second) == (drawn(copied), drawn(copied, prompt="paint it blue"))
    assert session.device_bytes > 0
    session.release()
    assert session.device_bytes == 0
    assert drawn(copied, session) == first


def test_without_a_session_nothing_is_kept(copied: EditModel):
    drawn(copied)
    with opened_files(copied.folder) as opened:
        drawn(copied)
    assert opened


def test_only_the_other_lora_is_read(copied: EditModel, tmp_path: Path):
    one = lora_file(copied, tmp_path / "loras" / "one.safetensors", 1)
    two = lora_file(copied, tmp_path / "loras" / "two.safetensors", 2, rank=3)
    session, tensors = EditSession(), load_file(one)
    variants: list[tuple[EditModel, set[str]]] = [
        (copied, set()),
        (copied.with_adapter(one), {"one.safetensors"}),
        (copied.with_adapter(one, 0.5), set()),
        (copied.with_adapter(two), {"two.safetensors"}),
        (copied.with_adapter(tensors), set()),
        (copied.with_adapter(tensors, 0.0), set()),
        (copied, set()),
    ]
    images = [drawn(copied, session)]
    for worn, read in variants:
        with opened_files(copied.folder, one.parent) as opened:
            images.append(drawn(worn, session))
        assert opened == read
    assert images[1:] == [drawn(worn) for worn, _ in variants]
    assert len(set(images)) == 4, "none, one, half of one, two"
    lora_file(copied, one, 3)
    assert drawn(copied.with_adapter(one), session) == drawn(copied.with_adapter(one)) != images[2]


def test_a_changed_file_is_loaded_again(copied: EditModel):
    session = EditSession()
    first = drawn(copied, session)
    (weights,) = (copied.folder / "transformer").glob("*.safetensors")
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    os.utime(weights, (1, 1))
    assert drawn(copied, session) == drawn(copied) != first


def test_two_models_in_turn(copied: EditModel, tmp_path: Path):
    other = replace(copied, folder=shutil.copytree(copied.folder, tmp_path / "other"))
    (weights,) = (other.folder / "transformer").glob("*.safetensors")
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    session, images = EditSession(), [drawn(copied), drawn(other)]
    assert [drawn(each, session) for each in (copied, other, copied, other)] == images * 2
    assert images[0] != images[1]


def test_a_closed_edit_leaves_the_model_usable(copied: EditModel, tmp_path: Path):
    session, worn = EditSession(), copied.with_adapter(lora_file(copied, tmp_path / "loras" / "one.safetensors", 1))
    plain = drawn(copied, session)
    for events in range(1, 7):
        drawing = edit(worn, shape_picture(1), "x", steps=3, session=session)
        for _ in range(events):
            next(drawing)
        drawing.close()
    with opened_files(copied.folder) as opened:
        assert drawn(copied, session) == plain
    assert not opened


def test_a_failed_edit_drops_the_model(copied: EditModel, monkeypatch: pytest.MonkeyPatch):
    session = EditSession()
    plain = drawn(copied, session)

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("trainer.inference.decode", fail)
        with pytest.raises(torch.OutOfMemoryError):
            drawn(copied, session)
    assert session.device_bytes == 0
    assert drawn(copied, session) == plain


def test_a_refused_lora_costs_no_load(copied: EditModel, tmp_path: Path):
    session = EditSession()
    plain = drawn(copied, session)
    wrong = tmp_path / "wrong.safetensors"
    save_file(
        {"transformer.nowhere.lora_A.weight": torch.ones(1, 2), "transformer.nowhere.lora_B.weight": torch.ones(2, 1)},
        wrong,
    )
    for source in (wrong, tmp_path / "missing.safetensors"):
        with pytest.raises(BadInput):
            drawn(copied.with_adapter(source), session)
    with opened_files(copied.folder) as opened:
        assert drawn(copied, session) == plain
    assert not opened


def everything(model: EditModel) -> Iterator[Plan]:
    """Plans with every place that weights can have, plain and quantized."""
    blocks = frozenset(range(len(blocks_of(model.empty_transformer()))))
    for precision in ("fp32", "int8", "nf4"):
        yield Plan(precision=precision, dtype=torch.float32, offload="phases", modulation_on_host=True, streamed=blocks)


def test_streamed_and_quantized_weights_keep_their_values(
    copied: EditModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    worn = [copied.with_adapter(lora_file(copied, tmp_path / "loras" / f"{seed}.safetensors", seed)) for seed in (1, 2)]
    variants = [copied, *worn, copied.with_adapter(worn[0].adapter, 0.5), copied]
    for plan in everything(copied):
        monkeypatch.setattr(edit_session, "inference_plan", lambda *args, plan=plan: plan)
        session = EditSession()
        assert [drawn(each, session) for each in variants] == [drawn(each) for each in variants], plan.precision


def test_nothing_is_kept_that_host_memory_has_no_room_for(copied: EditModel, monkeypatch: pytest.MonkeyPatch):
    session = EditSession()
    plain = drawn(copied)
    monkeypatch.setattr(edit_session, "HOST_RESERVE", 2**60)
    assert drawn(copied, session) == plain
    with opened_files(copied.folder) as opened:
        assert drawn(copied, session) == plain
    assert opened


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_after_a_training_its_model_is_the_one_in_memory(copied: EditModel, runs, checkpointing: str):
    session = EditSession()
    settings = {"gradient_checkpointing": checkpointing, "precision": "fp32"}
    finished = runs.run(copied, "run", steps=2, session=session, settings=settings)[-1]
    assert isinstance(finished, Finished) and finished.weights is not None
    assert session.device_bytes > 0
    trained = copied.with_adapter(finished.weights)
    drawn(copied, session)  # loads the encoders that the training has dropped
    with opened_files(copied.folder, finished.weights.parent) as opened:
        image = drawn(trained, session)
    assert opened == {finished.weights.name}
    assert image == drawn(trained) != drawn(copied)
    assert drawn(copied, session) == drawn(copied)


def test_a_training_in_another_precision_is_not_taken_over(copied: EditModel, runs):
    session = EditSession()
    runs.run(copied, "run", steps=1, session=session, settings={"precision": "int8"})
    assert session.device_bytes == 0
    assert drawn(copied, session) == drawn(copied)


def test_components_of_a_host_program_stay_where_they_are(copied: EditModel):
    plan = Plan(precision="fp32", dtype=torch.float32, offload="auto")
    components = ModelComponents(copied, torch.device("cpu"), plan)
    components.transformer()
    own = components.own_bytes
    components.codec()
    assert components.own_bytes > own > 0
    components.to_host()
    assert components.own_bytes == 0 and components.is_loaded("transformer")
