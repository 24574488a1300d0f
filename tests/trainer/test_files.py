"""Atomic files, the cache and checkpoints: complete under their name, or not there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.encoding.cache import TensorCache, cache_key
from trainer.errors import DamagedFile, RunFailed
from trainer.files import TEMPORARY_PREFIX, atomic_write, remove_unfinished
from trainer.tensors import write_tensors
from trainer.training.batch_sampler import Position
from trainer.training.checkpoint import CheckpointData, checkpoint_folders, last_step, load_checkpoint, save_checkpoint

REPO = Path(__file__).parents[2]


def state(step: int) -> CheckpointData:
    generator = torch.Generator().manual_seed(step)
    weights = {"a": torch.randn(3, generator=generator)}
    return CheckpointData(step, Position(1, step), 42, weights, {"a.exp_avg": torch.full((3,), float(step))})


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_refusing_disk_is_a_failed_run(tmp_path):
    with (
        pytest.raises(RunFailed, match=r"Cannot write .*file\.txt: No space left"),
        atomic_write(tmp_path / "file.txt"),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_equal_tensors_and_metadata_give_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from trainer.tensors import write_tensors;"
        "write_tensors(Path(sys.argv[1]), {'b': torch.ones(3), 'a': torch.zeros(2, 2)},"
        " {f'key {n}': 'é \"quoted\" \\n' * n for n in range(12)})"
    )
    contents = set()
    for number in range(2):
        path = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=REPO)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert file.metadata()["key 2"] == 'é "quoted" \n' * 2
        assert torch.equal(file.get_tensor("b"), torch.ones(3))


def test_cache_keys_do_not_run_together():
    keys = [
        cache_key("ab", "c"),
        cache_key("a", "bc"),
        cache_key("abc"),
        cache_key("ab", "c", ""),
        cache_key("c", "ab"),
    ]
    assert len(set(keys)) == len(keys)


def test_cache_gives_back_what_was_put_in_also_to_another_process(tmp_path):
    tensors = {"latents": torch.randn(1, 4, 2, 2), "text": torch.randn(3).to(torch.bfloat16)}
    key = cache_key("x")
    TensorCache(tmp_path).put(key, tensors)
    again = TensorCache(tmp_path)
    assert key in again
    assert cache_key("y") not in again
    assert again.get(cache_key("y"), tensors) is None
    for name, tensor in tensors.items():
        assert torch.equal(again.get(key, tensors)[name], tensor)


def test_a_cut_cache_entry_counts_as_missing(tmp_path):
    key = cache_key("x")
    TensorCache(tmp_path).put(key, {"a": torch.randn(100)})
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    for length in (0, 4, 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert key not in TensorCache(tmp_path)
        assert TensorCache(tmp_path).get(key, "a") is None


def test_cache_memory_is_bounded(tmp_path):
    cache = TensorCache(tmp_path, memory_bytes=10_000)
    for number in range(20):
        cache.put(cache_key(number), {"a": torch.zeros(1000)})
    assert sum(t["a"].numel() * 4 for t in cache._memory.values()) <= 10_000
    assert all(cache_key(number) in cache for number in range(20))


def test_checkpoints_round_trip_and_rotate(tmp_path):
    for step in (5, 10, 100, 1_000_005):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-000100", "step-1000005"]
    assert last_step(tmp_path) == 1_000_005
    loaded = load_checkpoint(tmp_path / "step-000100")
    assert (loaded.step, loaded.position, loaded.seed) == (100, Position(1, 100), 42)
    assert torch.equal(loaded.weights["a"], state(100).weights["a"])
    assert torch.equal(loaded.optimizer["a.exp_avg"], torch.full((3,), 100.0))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_recognized(tmp_path, name, damage):
    file = save_checkpoint(tmp_path, state(7), keep=3) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.unlink()
    with pytest.raises(DamagedFile, match=name):
        load_checkpoint(tmp_path / "step-000007")


def test_a_full_disk_in_a_checkpoint_harms_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1), keep=3)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.training.checkpoint.flush_to_disk", full)
    with pytest.raises(RunFailed, match="No space left"):
        save_checkpoint(tmp_path, state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert load_checkpoint(tmp_path / "step-000001") is not None


def test_what_a_crash_left_half_written_is_removed(tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}step-000003-ab").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}step-000003-ab" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / f"{TEMPORARY_PREFIX}x").write_bytes(b"half")
    write_tensors(tmp_path / "kept.safetensors", {"a": torch.zeros(1)})
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]
