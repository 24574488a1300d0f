"""Cache entries that a disk has damaged, and failures on the way: they cost a warning, and no finished step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.encoding.cache import TensorCache, cache_key
from trainer.errors import RunFailed
from trainer.events import Notice, Started, Step
from trainer.training.checkpoint import last_step
from trainer.training.run_folder import RunFolder

from .conftest import Runs

KEY = cache_key("x")


def only_entry(folder: Path) -> Path:
    (file,) = folder.glob("*/*.safetensors")
    return file


def flip_a_bit(file: Path) -> None:
    """In the last tensor, where no header shows it."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(64.0).reshape(8, 8), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(1)}
    TensorCache(tmp_path).put(KEY, tensors)
    return only_entry(tmp_path)


@pytest.mark.parametrize("place", [0, 7, 8, 30, 60, -1, -200])
def test_a_flipped_bit_makes_a_miss_and_the_entry_goes(entry, tmp_path, place):
    data = bytearray(entry.read_bytes())
    data[place] ^= 16
    entry.write_bytes(data)
    cache = TensorCache(tmp_path)
    assert cache.get(KEY, "abc") is None
    assert cache.damaged == {KEY}
    assert not entry.exists()
    assert KEY not in cache


def test_an_entry_under_another_key_is_none(entry, tmp_path):
    other = cache_key("y")
    target = tmp_path / other[:2] / f"{other}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(entry, target)
    assert TensorCache(tmp_path).get(other, "abc") is None
    assert TensorCache(tmp_path).get(KEY, "abc") is not None


def test_tensors_of_other_names_are_no_entry_of_an_earlier_release(entry, tmp_path):
    save_file({"latents": torch.ones(1, 16, 8, 8)}, entry)
    cache = TensorCache(tmp_path)
    assert cache.get(KEY, "abc") is None
    assert cache.damaged == {KEY}
    assert not entry.exists()


@pytest.mark.parametrize("writable", [True, False])
def test_an_entry_of_an_earlier_release_is_read_and_gets_a_checksum(entry, tmp_path, monkeypatch, writable):
    tensors = {name: tensor.clone() for name, tensor in load_file(entry).items()}  # they map the file
    save_file(tensors, entry)
    if not writable:

        def refuse(*_, **__):
            raise RunFailed("read-only")

        monkeypatch.setattr("trainer.encoding.cache.write_tensors", refuse)
    found = TensorCache(tmp_path).get(KEY, "abc")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(entry, "pt") as file:
        assert bool(file.metadata()) == writable
    if writable:
        flip_a_bit(entry)
        assert TensorCache(tmp_path).get(KEY, "abc") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]", b"\0" * 100])
def test_what_is_no_entry_counts_as_missing(entry, tmp_path, content):
    entry.write_bytes(content)
    assert KEY not in TensorCache(tmp_path)
    assert TensorCache(tmp_path).get(KEY, "abc") is None


@pytest.mark.slow
def test_damaged_entries_are_made_again_in_the_middle_of_a_run(model, runs: Runs):
    """With the result of a run without damage, and one warning."""
    same = {"steps": 3, "sample_every": 9, "cache_text_embeddings": True, "sample_width": 64, "sample_height": 64}
    same |= {"samples": [{"ctrl_img_url": "", "prompt": "x"}]}
    runs.run(model, "whole", **same)
    for file in runs.cache.glob("??/*.safetensors"):
        flip_a_bit(file)
    events = runs.run(model, "damaged", **same)
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert "has damaged entries: they are removed and made again" in notice
    assert runs.losses("damaged") == runs.losses("whole")
    one, two = (runs.folder / name / f"{name}-000003.safetensors" for name in ("whole", "damaged"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_an_entry_that_is_damaged_again_at_once_ends_the_run(kontext, runs: Runs, monkeypatch):
    real = TensorCache.put

    def damage(cache: TensorCache, key: str, tensors: dict) -> None:
        real(cache, key, tensors)
        flip_a_bit(cache._path(key))
        cache._memory.clear()

    monkeypatch.setattr(TensorCache, "put", damage)
    with pytest.raises(RunFailed, match=r"damaged again.*failing"):
        runs.run(kontext, steps=2)


@pytest.mark.slow
def test_a_cache_that_is_deleted_costs_no_finished_step(kontext, runs: Runs, monkeypatch):
    monkeypatch.setattr(TensorCache, "_remember", lambda *_: None)  # so that all is read from the disk
    same = {"steps": 8, "sample_every": 8, "cache_text_embeddings": True}
    runs.run(kontext, "whole", **same)
    with pytest.raises(RunFailed, match=r"(?s)was changed during training.*The last good checkpoint is .*step-"):
        for event in runs.events(kontext, **same):
            if isinstance(event, Step) and event.step == 2:
                shutil.rmtree(runs.cache)
    saved = last_step(runs.folder / "run" / "checkpoints")
    assert saved >= 2
    assert max(step for step, _ in steps_logged(runs)) == saved
    started = [event for event in runs.run(kontext, **same) if isinstance(event, Started)]
    assert started[0].first_step == saved
    assert runs.losses() == runs.losses("whole")


def steps_logged(runs: Runs) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (runs.folder / "run" / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


@pytest.mark.slow
def test_a_log_that_cannot_be_written_costs_no_finished_step(kontext, runs: Runs, monkeypatch):
    real = RunFolder.append_log

    def full(run: RunFolder, entry: dict) -> None:
        if entry.get("step") == 3:
            raise RunFailed("Cannot write log.jsonl: No space left on device.")
        real(run, entry)

    monkeypatch.setattr(RunFolder, "append_log", full)
    with pytest.raises(RunFailed, match=r"(?s)No space left.*checkpoint is .*step-000003"):
        runs.run(kontext, steps=4, sample_every=4)
    assert last_step(runs.folder / "run" / "checkpoints") == 3


@pytest.mark.slow
def test_memory_that_ends_in_the_optimizer_promises_no_checkpoint(kontext, runs: Runs, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    with pytest.raises(RunFailed, match=r"(?s)out of memory.*No step was saved yet"):
        runs.run(kontext, steps=4)
    assert last_step(runs.folder / "run" / "checkpoints") == 0
