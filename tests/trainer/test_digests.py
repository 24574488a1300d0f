"""A dataset is what its files hold: not when they were written, nor where they lie."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageChops

from trainer.config.columns import Columns
from trainer.data import digests
from trainer.data.dataset import EditDataset
from trainer.data.digests import FileDigests, pictures_state
from trainer.errors import RunFailed
from trainer.events import Finished, Notice, drain
from trainer.training.run_folder import RunFolder

from .conftest import Runs, png, shape_picture
from .edits import NAMES, opened, write, write_files
from .edits import png as small_png

COLUMNS = Columns.from_fields(NAMES)


def replace_keeping_dates(path: Path, data: bytes) -> None:
    """Write other bytes of the same length, and set the modification time back."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_copies_and_touched_files_are_the_same_data(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    path = write(tmp_path / "here", write_files(tmp_path / "here", 3))
    first = opened(path).fingerprint()
    os.utime(tmp_path / "here" / "in" / "1.png", (1, 1))
    assert opened(path).fingerprint() == first
    shutil.copytree(tmp_path / "here", tmp_path / "there", dirs_exist_ok=True, copy_function=shutil.copyfile)
    assert opened(tmp_path / "there" / "edits.parquet").fingerprint() == first


def test_replaced_files_are_other_data_also_with_the_old_dates_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))  # digests of files of this very moment are kept
    path = write(tmp_path, write_files(tmp_path, 3))
    kept = tmp_path / "digests"
    first = drain(opened(path).compute_fingerprint(kept))
    data = bytearray(small_png(1))
    data[-1] ^= 1
    replace_keeping_dates(tmp_path / "in" / "1.png", bytes(data))
    assert drain(opened(path).compute_fingerprint(kept)) != first
    replace_keeping_dates(tmp_path / "in" / "1.png", small_png(1))
    assert drain(opened(path).compute_fingerprint(kept)) == first


def test_unchanged_files_are_read_once(tmp_path, monkeypatch):
    write_files(tmp_path, 4)
    names = [f"in/{number}.png" for number in range(4)]
    read = []
    real = digests._read_digest
    monkeypatch.setattr(digests, "_read_digest", lambda name, root: read.append(name) or real(name, root))

    def digest() -> list[str]:
        files = FileDigests(tmp_path / "digests", tmp_path)
        found = drain(files.read(names))
        files.keep()
        read.sort()
        return found

    first = digest()
    assert read == names
    read.clear()
    digest()
    assert read == names, "a file as young as the clock is coarse may change again without a sign"
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))
    digest()
    read.clear()
    assert digest() == first
    assert read == []
    os.utime(tmp_path / "in" / "2.png", (5, 5))
    assert digest() == first
    assert read == ["in/2.png"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "another version", "other types", "binary"])
def test_a_damaged_list_is_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))
    write_files(tmp_path, 2)
    names = ["in/0.png", "in/1.png", "in/none.png", "in"]
    files = FileDigests(tmp_path / "digests", tmp_path)
    first = drain(files.read(names))
    assert first[2:] == ["missing", "missing"]
    files.keep()
    (kept,) = (tmp_path / "digests").iterdir()
    text = kept.read_text()
    other = json.dumps({"version": 2, "files": {"in/0.png": 1}})
    kept.write_bytes(
        {
            "flip": text.replace(first[0], "0" * 64).encode(),
            "cut": text[:200].encode(),
            "empty": b"",
            "another version": f"{digests._checksum(other)}\n{other}".encode(),
            "other types": f"{digests._checksum('[1]')}\n[1]".encode(),
            "binary": b"\xff\xfe\x00",
        }[damage]
    )
    assert drain(FileDigests(tmp_path / "digests", tmp_path).read(names)) == first


def test_the_state_of_the_pictures_follows_files_and_reads_none(tmp_path):
    columns = write_files(tmp_path, 3)
    path = write(tmp_path, columns)
    first = pictures_state(path, COLUMNS, tmp_path)
    assert pictures_state(path, COLUMNS, tmp_path) == first
    os.utime(tmp_path / "out" / "1.png", (7, 7))
    assert pictures_state(path, COLUMNS, tmp_path) != first
    odd = ["/etc/passwd", "//host/share/a.png", "http://x.org/a.png"]
    pictures_state(write(tmp_path, {**columns, "before": odd}), COLUMNS, tmp_path)
    inside = [{"bytes": small_png(number), "path": f"in/{number}.png"} for number in range(3)]
    path = write(tmp_path, {**columns, "before": inside, "after": inside})
    assert pictures_state(path, COLUMNS, tmp_path) == ""
    inside[1]["bytes"] = None
    path = write(tmp_path, {**columns, "before": inside, "after": inside})
    first = pictures_state(path, COLUMNS, tmp_path)
    (tmp_path / "in" / "1.png").write_bytes(small_png(2000, (9, 9)))
    assert pictures_state(path, COLUMNS, tmp_path) != first


def write_pictures(runs: Runs) -> None:
    """The dataset of `Runs.write` with its pictures in files."""
    columns = {"before": [], "words": [], "after": []}
    for seed in range(2):
        picture = shape_picture(seed)
        for name, data in (("before", png(picture)), ("after", png(ImageChops.invert(picture)))):
            (runs.folder / f"{name}{seed}.png").write_bytes(data)
            columns[name].append(f"{name}{seed}.png")
        columns["words"].append(f"pair {seed}")
    pq.write_table(pa.table(columns), runs.parquet)


@pytest.mark.slow
def test_replaced_pictures_train_anew_and_touched_ones_do_not(kontext, runs):
    write_pictures(runs)
    runs.run(kontext, steps=1)
    for file in runs.folder.glob("*.png"):
        os.utime(file, (9, 9))
    (finished,) = runs.run(kontext, steps=1)[-1:]
    assert isinstance(finished, Finished) and finished.run_dir == runs.folder / "run"
    assert not (runs.folder / "run-2").exists()
    for seed in range(2):
        (runs.folder / f"after{seed}.png").write_bytes(png(shape_picture(seed + 10)))
    events = runs.run(kontext, steps=1)
    assert any(isinstance(event, Notice) and "holds another training" in event.message for event in events)
    assert events[-1].run_dir == runs.folder / "run-2"


@pytest.mark.slow
def test_a_run_of_before_is_found_by_its_old_fingerprint_and_gets_the_new_one(kontext, runs, monkeypatch):
    write_pictures(runs)
    with monkeypatch.context() as earlier:
        earlier.setattr(EditDataset, "fingerprint", EditDataset.former_fingerprint)

        def former(self: EditDataset, kept: Path | None = None):
            yield from ()
            return self.former_fingerprint()

        earlier.setattr(EditDataset, "compute_fingerprint", former)
        runs.run(kontext, steps=1)
    run = RunFolder(runs.folder / "run")
    old = run.state()["fingerprint"]
    assert isinstance(runs.run(kontext, steps=1)[-1], Finished)
    assert not (runs.folder / "run-2").exists()
    new = run.state()
    assert new["fingerprint"] != old and new["finished_step"] == 1
    for file in runs.folder.glob("*.png"):
        os.utime(file, (9, 9))
    runs.run(kontext, steps=2)
    assert run.state()["finished_step"] == 2
    assert not (runs.folder / "run-2").exists()


@pytest.mark.slow
def test_a_picture_replaced_while_the_run_starts_ends_it(kontext, runs):
    write_pictures(runs)
    events = runs.events(kontext, steps=1)
    next(event for event in events if type(event).__name__ == "Planned")
    (runs.folder / "after1.png").write_bytes(png(shape_picture(20)))
    with pytest.raises(RunFailed, match=r"after1\.png was replaced"):
        list(events)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_a_control_replaced_before_the_texts_are_encoded_ends_the_run(qwen, runs, cached):
    write_pictures(runs)
    events = runs.events(qwen, steps=1, cache_text_embeddings=cached)
    next(event for event in events if getattr(event, "note", "") == "images" and event.done == 2)
    (runs.folder / "before1.png").write_bytes(png(shape_picture(20)))
    with pytest.raises(RunFailed, match=r"before1\.png was replaced"):
        list(events)
