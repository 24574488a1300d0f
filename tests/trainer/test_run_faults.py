"""A run folder that is in use, damaged, or holds what no run has written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from trainer.errors import BadInput, DamagedFile
from trainer.events import Checkpoint, Finished, Notice, Started
from trainer.files import read_record, write_record
from trainer.training.checkpoint import checkpoint_steps, load_checkpoint
from trainer.training.choose_folder import open_run_folder
from trainer.training.run_folder import RunFolder
from trainer.training.run_lock import lock_run
from trainer.training.run_state import ARITHMETIC

from .conftest import Runs

STEPS = {"steps": 3, "sample_every": 1}


@pytest.fixture(scope="module")
def trained(kontext, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of three steps that was stopped after the second, and the same one undisturbed, in `whole`."""
    runs = Runs(tmp_path_factory.mktemp("trained"))
    runs.run(kontext, "whole", **STEPS)
    with closing(runs.events(kontext, **STEPS)) as events:
        next(event for event in events if isinstance(event, Checkpoint) and event.step == 2)
    return runs


@pytest.fixture
def stopped(trained: Runs, tmp_path: Path) -> Runs:
    """A copy of the stopped run, with the dataset and cache of the first."""
    runs = Runs(trained.folder)
    runs.folder = tmp_path
    shutil.copytree(trained.folder / "run", tmp_path / "run")
    return runs


def resume(runs: Runs, kontext, name: str = "run", **params: Any) -> tuple[list[str], Started | None, Finished]:
    """Notices, start and end of a run that is started again."""
    events = runs.run(kontext, name, **(STEPS | params))
    started = [event for event in events if isinstance(event, Started)]
    assert isinstance(events[-1], Finished)
    return [event.message for event in events if isinstance(event, Notice)], next(iter(started), None), events[-1]


def assert_as_undisturbed(runs: Runs, trained: Runs) -> None:
    weights = (runs.folder / "run" / "run-000003.safetensors").read_bytes()
    assert weights == (trained.folder / "whole" / "whole-000003.safetensors").read_bytes()
    assert runs.losses() == trained.losses("whole")


# one process at a time


@pytest.mark.slow
@pytest.mark.parametrize("other", [{}, {"learning_rate": 0.5}, {"steps": 9}])
def test_a_folder_in_use_is_refused_and_its_holder_named(kontext, stopped, trained, other):
    with closing(stopped.events(kontext, **STEPS)) as events:
        next(event for event in events if isinstance(event, Started))
        before = {path: path.read_bytes() for path in (stopped.folder / "run").rglob("*") if path.is_file()}
        with pytest.raises(
            BadInput, match=rf"run is in use: process {os.getpid()} on .* is training in it.*name anoth"
        ):
            resume(stopped, kontext, **other)
        assert before == {path: path.read_bytes() for path in (stopped.folder / "run").rglob("*") if path.is_file()}
        list(events)
    assert_as_undisturbed(stopped, trained)
    assert not (stopped.folder / "run-2").exists()
    assert not (stopped.folder / "run" / "holder.json").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_run(tmp_path / "run"):
            os.write(writing, b"locked")
            signal.pause()
    assert os.read(reading, 6) == b"locked"
    with pytest.raises(BadInput, match=f"process {child} on"), lock_run(tmp_path / "run"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock_run(tmp_path / "run") as notice:
        assert notice is None


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("trainer.training.run_lock.FileLock.acquire", refuse)
    with lock_run(tmp_path / "run") as notice:
        assert notice is not None and "cannot be locked" in notice and "not supported" in notice


def test_a_run_that_cannot_start_leaves_no_folder(kontext, runs, monkeypatch):
    def refuse(*_):
        raise BadInput("does not fit")

    monkeypatch.setattr("trainer.training.setup.joint_plan", refuse)
    with pytest.raises(BadInput, match="does not fit"):
        runs.run(kontext)
    assert not (runs.folder / "run").exists()


# damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) - 9] ^= 4
    file.write_bytes(data)


def delete(file: Path) -> None:
    file.unlink()


def text(content: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(content, encoding="utf-8")


def edit(**changes: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def not_finite(file: Path) -> None:
    """A value that is not a number, in a file whose checksums were made again."""
    tensors = load_file(file)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file)
    as_of_an_earlier_release(file.parent)


def as_of_an_earlier_release(checkpoint: Path) -> None:
    """Leave step and data position alone in state.json, as releases before the checksums wrote it."""
    state = json.loads((checkpoint / "state.json").read_text())
    kept = {name: state[name] for name in ("step", "epoch", "batch", "seed")}
    (checkpoint / "state.json").write_text(json.dumps(kept))


DAMAGE = {
    "a bit of the weights": ("weights.safetensors", flip_a_bit, "does not match the checksum"),
    "a bit of the optimizer": ("optimizer.safetensors", flip_a_bit, "does not match the checksum"),
    "the weights cut": ("weights.safetensors", cut, "does not match the checksum"),
    "no optimizer": ("optimizer.safetensors", delete, "has no optimizer.safetensors"),
    "no state": ("state.json", delete, "has no state.json"),
    "another step": ("state.json", edit(step=7), "checksum"),
    "another position": ("state.json", edit(batch=7), "checksum"),
    "a list": ("state.json", text("[1, 2]"), "not a JSON object"),
    "an old list": ("state.json", text('{"step": [2], "epoch": 0, "batch": 2, "seed": 1}'), "impossible values"),
    "null": ("state.json", text("null"), "not a JSON object"),
    "nested": ("state.json", text("[" * 100_000), "not valid JSON"),
    "empty": ("state.json", text(""), "not valid JSON"),
    "weights that are no numbers": ("weights.safetensors", not_finite, r"not finite numbers, in .*lora"),
    "an optimizer without numbers": ("optimizer.safetensors", not_finite, r"not finite numbers, in .*exp_avg"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_recognized(stopped, damage):
    name, act, said = DAMAGE[damage]
    checkpoint = stopped.folder / "run" / "checkpoints" / "step-000002"
    act(checkpoint / name)
    with pytest.raises(DamagedFile, match=said):
        load_checkpoint(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit of the weights", "a list", "an optimizer without numbers"])
def test_a_damaged_checkpoint_is_removed_and_an_older_one_used(kontext, stopped, trained, damage):
    name, act, said = DAMAGE[damage]
    act(stopped.folder / "run" / "checkpoints" / "step-000002" / name)
    notices, started, _ = resume(stopped, kontext)
    assert started.first_step == 1
    assert re.search(f"step-000002 is damaged and was removed.*{said}", notices[0]), notices
    assert_as_undisturbed(stopped, trained)


@pytest.mark.slow
def test_what_no_run_has_written_is_ignored(kontext, stopped, trained):
    run = stopped.folder / "run"
    shutil.copytree(run / "checkpoints" / "step-000002", run / "checkpoints" / "step-000003 - Copy")
    for name in ("step-", "step-x", "step-0000009", "step-000009.bak", "step-٠٠٠٠٠٩", ".DS_Store"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-000009").write_text("a file")
    (run / "samples").mkdir(exist_ok=True)
    for name in ("step-000002-00 (1).png", "step-.png", "step-000002.png", "step-a-b.png", "step-000002-00-00.png"):
        (run / "samples" / name).write_bytes(b"no picture")
    assert RunFolder(run).sample_files() == {}
    assert checkpoint_steps(run / "checkpoints") == [1, 2]
    notices, started, _ = resume(stopped, kontext)
    assert (notices, started.first_step) == ([], 2)
    assert_as_undisturbed(stopped, trained)
    assert (run / "checkpoints" / "step-000003 - Copy").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_of_another_run_is_set_aside(kontext, stopped, trained, older):
    """By its fingerprint, and in an earlier release's by its tensors."""
    stopped.run(kontext, "other", steps=2, sample_every=1, lora_rank=2, lora_alpha=2)
    theirs = stopped.folder / "run" / "checkpoints" / "step-000002"
    shutil.rmtree(theirs)
    shutil.copytree(stopped.folder / "other" / "checkpoints" / "step-000002", theirs)
    if older:
        as_of_an_earlier_release(theirs)
    notices, started, _ = resume(stopped, kontext)
    assert started.first_step == 1
    assert "step-000002 belongs to another run and was set aside, as step-000002.other" in notices[0]
    assert theirs.with_name("step-000002.other").is_dir()
    assert_as_undisturbed(stopped, trained)


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_release_is_read_and_gets_checksums(kontext, stopped, trained):
    checkpoint = stopped.folder / "run" / "checkpoints" / "step-000002"
    as_of_an_earlier_release(checkpoint)
    with closing(stopped.events(kontext, **STEPS)) as events:
        assert next(event for event in events if isinstance(event, Started)).first_step == 2
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["files"].keys() == {"weights.safetensors", "optimizer.safetensors"}
    assert state["run"]["fingerprint"] == RunFolder(stopped.folder / "run").state()["fingerprint"]
    flip_a_bit(checkpoint / "weights.safetensors")
    assert resume(stopped, kontext)[1].first_step == 1
    assert_as_undisturbed(stopped, trained)


@pytest.mark.parametrize("file", ["run.json", "checkpoints/step-000002/state.json"])
def test_files_of_a_later_release_are_refused(kontext, stopped, file):
    path = stopped.folder / "run" / file
    unchecked = ARITHMETIC if file == "run.json" else ()
    record = read_record(path, unchecked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.files.RECORD_VERSION", 2)
        write_record(path, record, unchecked)
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"(run|state)\.json was written by a later version .*format 2"):
        resume(stopped, kontext)
    assert path.read_bytes() == before
    with ExitStack() as held:
        other, _ = open_run_folder(stopped.folder / "run", "another", 3, held)
    assert other.path.name == "run-2"


@pytest.mark.slow
def test_damaged_lines_of_the_log_take_no_others_with_them(kontext, stopped, trained):
    log = stopped.folder / "run" / "log.jsonl"
    lines = log.read_text().splitlines()
    bad = ["null", "[]", "{", '{"event": "step", "step": "1"}', '{"event": "step", "step": 1, "loss": NaN}', "\x00"]
    log.write_text("\n".join([*bad, lines[0], *bad, *lines[1:], '{"event": "st']))
    assert [step for step, _ in RunFolder(stopped.folder / "run").losses()] == [1, 2]
    notices, _, _ = resume(stopped, kontext)
    assert any("had 12 damaged lines, which were dropped" in notice for notice in notices)
    assert_as_undisturbed(stopped, trained)


# which run a folder holds


RUN_JSON = {
    "gone": delete,
    "cut": cut,
    "empty": text(""),
    "null": text("null"),
    "a list": text("[]"),
    "no object": text('"x"'),
    "another fingerprint": edit(fingerprint="0" * 64),
    "a fingerprint that is none": text('{"fingerprint": [1]}'),
    "a finished step that is none": edit(finished_step="3"),
    "weights elsewhere": edit(finished_step=3, weights="../../x.safetensors"),
    "bytes": lambda file: file.write_bytes(struct.pack("<8d", *range(8))),
}


@pytest.mark.parametrize("damage", RUN_JSON)
@pytest.mark.parametrize("older", [False, True])
def test_whose_checkpoints_these_are(stopped, damage, older):
    """Without a sound run.json the checkpoints say it; those of an earlier release do not."""
    run = stopped.folder / "run"
    fingerprint = RunFolder(run).state()["fingerprint"]
    for checkpoint in (run / "checkpoints").iterdir() if older else ():
        as_of_an_earlier_release(checkpoint)
    RUN_JSON[damage](run / "run.json")
    for wanted, name in ((fingerprint, "run-2" if older else "run"), ("another", "run-2")):
        with ExitStack() as held:
            found, notices = open_run_folder(run, wanted, 3, held)
        assert found.path.name == name
        assert any("run.json" in notice for notice in notices) == (damage != "gone"), notices


@pytest.mark.slow
def test_checkpoints_go_on_in_their_own_run_alone(kontext, stopped, trained):
    run = stopped.folder / "run"
    cut(run / "run.json")
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*") if path.is_file()}
    notices, started, finished = resume(stopped, kontext, learning_rate=0.5)
    assert (started.first_step, finished.run_dir.name) == (0, "run-2"), notices
    assert any("stays as it is; this run goes to" in notice for notice in notices)
    assert all(path.read_bytes() == data for path, data in before.items())
    notices, started, finished = resume(stopped, kontext)
    assert (started.first_step, finished.run_dir.name) == (2, "run"), notices
    assert_as_undisturbed(stopped, trained)


@pytest.mark.parametrize("change", [{"precision": "int3"}, {"precision": 8}, {"dtype": "x"}, {"compile": None}])
def test_an_unknown_way_to_compute_is_refused_by_name(kontext, stopped, change):
    edit(**change)(stopped.folder / "run" / "run.json")
    (name,) = change
    with pytest.raises(BadInput, match=rf"run\.json: {name} .* is unknown; it can be .*Correct it"):
        resume(stopped, kontext)


# names


@pytest.mark.parametrize("name", ["n" * 237, "漢" * 80, "é" * 119])
def test_a_name_that_its_weights_cannot_have_is_refused_at_once(kontext, runs, name):
    with pytest.raises(BadInput, match=rf"{len(name.encode()) + 19} bytes.*shorter name"):
        runs.run(kontext, name)
    assert not (runs.folder / name).exists()


@pytest.mark.slow
def test_the_longest_name_that_is_accepted_can_be_exported(kontext, runs):
    name = "n" * 236
    assert runs.run(kontext, name, steps=1)[-1].weights.name == f"{name}-000001.safetensors"


@pytest.mark.parametrize("out", [".", "..", "sub/.."])
def test_weights_are_named_after_the_folder_whatever_its_path(tmp_path, monkeypatch, out):
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder / "sub" if out == ".." else folder)
    with ExitStack() as held:
        run, _ = open_run_folder(Path(out), "0", 1, held)
    assert run.weights_path(1) == folder / "mine-000001.safetensors"


def test_a_root_has_no_name_for_the_weights(tmp_path):
    with pytest.raises(BadInput, match="has no name"), ExitStack() as held:
        open_run_folder(Path(tmp_path.anchor), "0", 1, held)


@pytest.mark.parametrize("name", ["request.json", "settings.json", "log.jsonl", "run.json"])
def test_a_file_of_ones_own_is_not_overwritten(kontext, runs, name):
    folder = runs.folder / "run"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    with pytest.raises(BadInput, match=rf"already has a {name}, which is of no run"):
        runs.run(kontext)
    assert [path.read_text() for path in folder.iterdir()] == ['{"mine": 1}']
