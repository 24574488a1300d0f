"""Datasets of several files: folders, patterns, shards, and folders that the `datasets` library has saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.cli.main import main
from trainer.data import dataset_files as files_of_dataset
from trainer.data import row_blocks
from trainer.data.columns import guess_columns
from trainer.data.dataset_files import data_folder, dataset_files
from trainer.data.digests import pictures_state
from trainer.data.load_request import load_request, resolve_resource
from trainer.data.parquet import parquet_columns
from trainer.data.row_blocks import RowBlocks
from trainer.errors import BadInput, RunFailed
from trainer.events import Started, drain
from trainer.packing.pack import pack

from .conftest import Runs
from .edits import NAMES, assert_rows_belong_together, opened, png, write, write_files
from .fuzz import PACKED_NAMES

ROWS = 11


def in_bytes(count: int) -> dict[str, list]:
    return {
        "prompt": [f"edit {number}" for number in range(count)],
        "before": [png(number) for number in range(count)],
        "after": [png(number + 1000) for number in range(count)],
    }


def shards(folder: Path, columns: dict[str, list], *ends: int) -> Path:
    """The rows in several parquets, cut at `ends`."""
    folder.mkdir(exist_ok=True)
    starts = (0, *ends)
    for number, (start, end) in enumerate(zip(starts, (*ends, len(columns["before"])), strict=True)):
        part = pa.table({name: pa.array(values).slice(start, end - start) for name, values in columns.items()})
        pq.write_table(part, folder / f"train-{number:05}-of-{len(starts):05}.parquet", row_group_size=3)
    return folder


def tensor_bytes(path: Path) -> bytes:
    """A safetensors file without its header."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def saved(folder: Path, columns: dict[str, list], parts: int) -> Path:
    """The rows as the `datasets` library saves them, pictures as its own feature."""
    structs = {name: [{"bytes": cell, "path": None} for cell in columns[name]] for name in ("before", "after")}
    made = datasets.Dataset.from_dict(columns | structs)
    for name in structs:
        made = made.cast_column(name, datasets.Image())
    made.save_to_disk(str(folder), num_shards=parts)
    return folder


def test_a_folder_a_pattern_and_shards_are_one_dataset(tmp_path: Path) -> None:
    columns = in_bytes(ROWS)
    one = opened(write(tmp_path, columns))
    folder = shards(tmp_path / "data", columns, 4, 4, 9)
    for path in (folder, folder / "*.parquet", tmp_path / "da*" / "train-*", tmp_path / "**" / "train-*.parquet"):
        several = opened(path)
        assert_rows_belong_together(several, list(range(ROWS)))
        assert several.fingerprint() == one.fingerprint()
        assert str(several.report).splitlines()[0] == f"{path.name}: {ROWS} rows, all usable"
        assert parquet_columns(path) == parquet_columns(tmp_path / "edits.parquet")
        assert guess_columns(path) == guess_columns(tmp_path / "edits.parquet")


def test_only_some_of_many_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "OPEN_FILES", 2)
    monkeypatch.setattr(row_blocks, "CACHED_BYTES", 1)
    dataset = opened(shards(tmp_path / "data", in_bytes(ROWS), *range(1, ROWS)))
    assert_rows_belong_together(dataset, list(range(ROWS)))
    assert sum(file._files is not None for file in dataset._blocks.files) == 2
    (tmp_path / "data" / "train-00000-of-00011.parquet").write_bytes(b"PAR1 of another")
    with pytest.raises(RunFailed, match=r"train-00000-of-00011.parquet was replaced"):
        dataset.read_row(0)


def test_paths_start_at_the_folder_of_the_files(tmp_path: Path) -> None:
    columns = write_files(tmp_path, ROWS)
    shards(tmp_path, columns, 5)
    one = opened(write(tmp_path, columns))
    (tmp_path / "edits.parquet").unlink()
    several = opened(tmp_path)
    assert data_folder(tmp_path) == several.images_root == several.folder == tmp_path
    assert_rows_belong_together(several, list(range(ROWS)))
    assert several.fingerprint() == one.fingerprint()
    before = pictures_state(tmp_path, several.columns, tmp_path)
    (tmp_path / "out" / "10.png").write_bytes(png(3))
    assert pictures_state(tmp_path, several.columns, tmp_path) != before


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_that_datasets_has_saved(parts: int, tmp_path: Path) -> None:
    columns = in_bytes(ROWS)
    one = opened(write(tmp_path, columns))
    dataset = opened(saved(tmp_path / "saved", columns, parts))
    assert_rows_belong_together(dataset, list(range(ROWS)))
    assert dataset.fingerprint() == one.fingerprint()
    assert pictures_state(tmp_path / "saved", dataset.columns, tmp_path) == ""
    assert guess_columns(tmp_path / "saved")["caption_column"] == "prompt"


def test_blocks_of_an_arrow_file_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.data import arrow_rows

    monkeypatch.setattr(arrow_rows, "BLOCK_BYTES", 1000)
    path = saved(tmp_path / "saved", in_bytes(60), 1)
    assert 1 < max(block.rows for block in RowBlocks(path, list(NAMES.values()))) < 20
    assert_rows_belong_together(opened(path), list(range(60)))


def test_a_bad_row_is_named_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = in_bytes(ROWS)
    columns["after"][6] = b"no picture"
    columns["prompt"][9] = None
    folder = shards(tmp_path / "data", columns, 4, 8)
    with pytest.raises(BadInput) as error:
        opened(folder)
    assert 'train-00001-of-00003.parquet, row 2, column "after": not a PNG' in str(error.value)
    assert 'train-00002-of-00003.parquet, row 1, column "prompt": is null' in str(error.value)
    assert len(opened(folder, bad_rows="skip")) == ROWS - 2
    assert main(["inspect", str(folder), "--json"]) == 0
    bad = json.loads(capsys.readouterr().out)["report"]["bad"]
    assert [(fault["row"], fault["file"], fault["row_of_file"]) for fault in bad] == [
        (6, "train-00001-of-00003.parquet", 2),
        (9, "train-00002-of-00003.parquet", 1),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda columns: columns.pop("after"), 'the column "after" holds bytes in the one and is missing in the other'),
        (lambda columns: columns.update(more=[1]), 'the column "more" is missing in the one and holds int64'),
        (lambda columns: columns.update(prompt=[1]), 'the column "prompt" holds text in the one and holds int64'),
        (lambda columns: columns.update(before=["a.png"]), 'the column "before" holds bytes in the one and holds text'),
    ],
)
def test_schemas_that_disagree_are_one_message(change: Callable[[dict], object], says: str, tmp_path: Path) -> None:
    write(tmp_path, in_bytes(2), "a.parquet")
    other = in_bytes(1)
    change(other)
    write(tmp_path, other, "b.parquet")
    for read in (opened, parquet_columns, lambda path: RowBlocks(path, ["prompt"])):
        with pytest.raises(BadInput) as error:
            read(tmp_path)
        assert str(error.value).startswith(f"{tmp_path / 'a.parquet'} and {tmp_path / 'b.parquet'} cannot be read as")
        assert says in str(error.value) and "\n" not in str(error.value)


def test_a_shard_whose_column_is_all_null_agrees(tmp_path: Path) -> None:
    write(tmp_path, in_bytes(2), "a.parquet")
    write(tmp_path, {"prompt": [None], "before": [png(1)], "after": [png(2)]}, "b.parquet")
    assert len(opened(tmp_path, bad_rows="skip")) == 2


def test_which_files_are_meant_is_never_a_guess(tmp_path: Path) -> None:
    for place in ("data/train-0.parquet", "data/train-1.parquet", ".cache/x.parquet", "data/.hidden.parquet"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write(tmp_path, in_bytes(1), place)
    names = ["train-0.parquet", "train-1.parquet"]
    assert [file.name for file in dataset_files(tmp_path)] == names
    write(tmp_path, in_bytes(1), "data/test-0.parquet")
    with pytest.raises(BadInput, match=r"several splits \(test, train\).*train\*\.parquet"):
        dataset_files(tmp_path)
    assert [file.name for file in dataset_files(tmp_path / "data" / "train*.parquet")] == names
    (tmp_path / "other").mkdir()
    write(tmp_path, in_bytes(1), "other/a.parquet")
    with pytest.raises(BadInput, match=r"in several folders \(data, other\)"):
        dataset_files(tmp_path)
    with pytest.raises(BadInput, match="several splits \\(train, test\\)"):
        datasets.DatasetDict(
            {split: datasets.Dataset.from_dict({"a": ["b"]}) for split in ("train", "test")}
        ).save_to_disk(str(tmp_path / "splits"))
        dataset_files(tmp_path / "splits")
    assert len(dataset_files(tmp_path / "splits" / "train")) == 1


@pytest.mark.parametrize("name", ["train-{:05}-of-00003.parquet", "train-{:05}-of-00003-0a1b2c3d4e5f.parquet"])
def test_a_copy_that_lacks_a_shard_is_refused(name: str, tmp_path: Path) -> None:
    for number in (0, 2):
        write(tmp_path, in_bytes(1), name.format(number))
    with pytest.raises(BadInput, match=r'2 of the 3 files "train-\.\.\.": number 1 is missing'):
        opened(tmp_path)
    assert len(opened(tmp_path / "train-*")) == 2
    write(tmp_path, in_bytes(1), name.format(1))
    assert len(opened(tmp_path)) == 3


def test_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    folder = shards(tmp_path / "[AI] data", in_bytes(4), 2)
    assert len(opened(folder / "*.parquet")) == len(opened(folder)) == 4
    assert len(opened(folder / "train-00001-of-00002.parquet")) == 2
    with pytest.raises(BadInput, match="does not exist"):
        opened(folder / "none.parquet")


def test_too_many_files_are_refused_and_none_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "data", in_bytes(6), *range(1, 6))
    monkeypatch.setattr(files_of_dataset, "MAX_FILES", 5)
    for path in (tmp_path / "data", tmp_path / "data" / "*"):
        with pytest.raises(BadInput, match="more than 5 files; join"):
            opened(path)
    monkeypatch.setattr(files_of_dataset, "MAX_ENTRIES", 4)
    for path in (tmp_path / "data", tmp_path / "data" / "*"):
        with pytest.raises(BadInput, match="more than 4 files; name a parquet"):
            opened(path)
    monkeypatch.setattr(row_blocks, "MAX_ROWS", 5)
    monkeypatch.undo()
    monkeypatch.setattr(row_blocks, "MAX_ROWS", 5)
    with pytest.raises(BadInput, match="has 6 rows; at most 5"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"_data_files": [{"filename": "../edits.arrow"}]}, "names no files"),
        *(({"_data_files": [{"filename": name}]}, "names no files") for name in ("", "..", "a\0.arrow", "state.json")),
        ({"_data_files": []}, "names no files"),
        ({"_data_files": [{"filename": "none.arrow"}]}, "does not exist"),
        ({"_data_files": [{"filename": "data.arrow"}], "_indices_files": [{"filename": "i"}]}, "a selection of rows"),
        ([], "names no files"),
    ],
)
def test_a_saved_folder_that_is_damaged(state: object, says: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(BadInput, match=says):
        opened(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such pipes")
def test_a_pipe_in_a_saved_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (tmp_path / "dataset_info.json").write_text("{}")
    os.mkfifo(tmp_path / "data.arrow")
    with pytest.raises(BadInput, match=r"data\.arrow is not a file"):
        opened(tmp_path)


def test_an_arrow_file_that_is_replaced_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"

    def write(*numbers: int) -> None:
        table = pa.table({**in_bytes(2), "prompt": [f"edit {number}" for number in numbers]})
        with pa.ipc.new_stream(path, table.schema) as writer:
            for batch in table.to_batches(1):
                writer.write_batch(batch)

    write(0, 1)
    dataset = opened(path)
    assert dataset[0].caption == "edit 0"
    write(8, 9)
    with pytest.raises(RunFailed, match=r"a\.arrow was replaced while it was read"):
        dataset[1]


def test_arrow_files_that_are_not_read(tmp_path: Path) -> None:
    table = pa.table(in_bytes(3))
    path = tmp_path / "a.arrow"

    def stream(table: pa.Table, **options: object) -> None:
        with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)

    stream(table)
    assert len(opened(path)) == 3
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadInput, match=r"a.arrow cannot be read as an Arrow file: it is cut off"):
        opened(path)
    stream(table, compression="zstd")
    with pytest.raises(BadInput, match="it is compressed"):
        opened(path)
    stream(table.set_column(0, "prompt", table["prompt"].dictionary_encode()))
    with pytest.raises(BadInput, match="dictionaries"):
        opened(path)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert len(opened(path)) == 3
    path.write_bytes(b"no arrow file")
    with pytest.raises(BadInput, match="there is no message at byte 0"):
        opened(path)


def test_a_request_names_a_folder_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shards(tmp_path / "data", in_bytes(4), 2)
    request = {
        "resource": "main/data/train-*.parquet",
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": NAMES,
    }
    assert load_request(request, tmp_path)[1] == tmp_path / "data" / "train-*.parquet"
    assert load_request(request | {"resource": "main/data"}, tmp_path)[1] == folder
    with pytest.raises(BadInput, match=r'training_params\.image_column: "none" is not a column of data'):
        load_request(request | {"resource": "data", "training_params": NAMES | {"image_column": "none"}}, tmp_path)
    write(tmp_path, in_bytes(1))
    for typo in ("data/test-*", "dta/*.parquet", "dta/**/*.parquet"):
        with pytest.raises(BadInput, match="pattern that no parquet file matches"):
            resolve_resource(typo, tmp_path)


@pytest.mark.slow
def test_shards_train_as_one_parquet_does_and_go_on_with_its_run(kontext: object, runs: Runs, tmp_path: Path) -> None:
    columns = pq.read_table(runs.write(5)).to_pydict()
    runs.run(kontext, steps=4)
    (file,) = (runs.folder / "run").glob("*.safetensors")
    folders = {"shards": shards(tmp_path / "data", columns, 2, 2), "saved": saved(tmp_path / "saved", columns, 2)}
    for name, path in folders.items():
        others = Runs(tmp_path / name / "runs")
        others.parquet = path
        others.run(kontext, steps=4)
        assert others.losses() == runs.losses()
        # The header of the file names the resource.
        assert tensor_bytes(others.folder / "run" / file.name) == tensor_bytes(file)
    for number, (before, words, after) in enumerate(zip(*columns.values(), strict=True)):
        for place, data in (("control", before), ("target", after)):
            (tmp_path / "pictures" / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / "pictures" / place / f"{number}.png").write_bytes(data)
        (tmp_path / "pictures" / "target" / f"{number}.txt").write_text(words)
    packed = Runs(tmp_path / "packed")
    packed.parquet = tmp_path / "packed.parquet"
    drain(pack(tmp_path / "pictures", packed.parquet))
    packed.run(kontext, steps=4, **PACKED_NAMES)
    assert packed.losses() == runs.losses()
    (other,) = (packed.folder / "run").glob("*.safetensors")
    assert tensor_bytes(other) == tensor_bytes(file)
    runs.parquet = folders["shards"]
    resumed = runs.run(kontext, steps=6)
    assert next(event for event in resumed if isinstance(event, Started)).first_step == 4
    assert len(runs.losses()) == 6
    assert not (runs.folder / "run-2").exists()
