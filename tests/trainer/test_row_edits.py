"""Rows that are left out and captions that are edited make the dataset of a parquet written that way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.cli.main import main
from trainer.data.row_edits import (
    RowEdits,
    change_edits,
    discard_edits,
    edits_file,
    edits_kept,
    read_edits,
    write_edits,
)
from trainer.errors import BadInput
from trainer.files import _record_checksum, write_record
from trainer.models.edit_model import EditModel

from .conftest import Runs
from .edits import number_of, opened, write, write_files

EDITS = {"leave_out": [0, 4, 5], "column": "prompt", "captions": {2: "make it blue", 5: "left out too"}}


def edited_by_hand(columns: dict, left_out: tuple[int, ...] = (0, 4, 5)) -> dict:
    """The columns of a parquet that is written with EDITS."""
    columns = {**columns, "prompt": ["make it blue" if n == 2 else text for n, text in enumerate(columns["prompt"])]}
    return {name: [cell for n, cell in enumerate(cells) if n not in left_out] for name, cells in columns.items()}


@pytest.mark.parametrize("options", [{}, {"row_group_size": 3}, {"use_dictionary": True, "row_group_size": 5}])
def test_an_edited_dataset_is_that_of_a_parquet_written_so(tmp_path: Path, options: dict):
    columns = write_files(tmp_path, 12)
    by_hand = opened(write(tmp_path, edited_by_hand(columns), "by_hand.parquet"))
    path = write(tmp_path, columns, **options)
    plain = opened(path).fingerprint()
    change_edits(path, **EDITS)
    dataset = opened(path)
    assert dataset.fingerprint() == by_hand.fingerprint() != plain
    assert list(dataset) == list(by_hand)
    assert [dataset[index] for index in (8, 0, 3)] == [by_hand[index] for index in (8, 0, 3)]
    assert [number_of(dataset.fetch(row.target)) - 1000 for row in dataset] == [1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert [dataset.file_row(row.row) for row in dataset] == [1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert "3 rows left out, 1 caption edited" in str(dataset.report)
    discard_edits(path)
    assert opened(path).fingerprint() == plain


def test_edits_of_shards_stand_beside_each(tmp_path: Path):
    columns = write_files(tmp_path, 12)
    by_hand = opened(write(tmp_path, edited_by_hand(columns), "by_hand.parquet"), images_root=str(tmp_path))
    folder = tmp_path / "data"
    folder.mkdir()
    parts = [(0, 5), (5, 6), (6, 12)]
    paths = [
        write(folder, {name: cells[first:end] for name, cells in columns.items()}, f"{number}.parquet")
        for number, (first, end) in enumerate(parts)
    ]
    change_edits(paths[0], leave_out=[0, 4], column="prompt", captions={2: "make it blue"})
    change_edits(paths[1], leave_out=[0])
    dataset = opened(folder, images_root=str(tmp_path))
    assert dataset.fingerprint() == by_hand.fingerprint()
    assert list(dataset) == list(by_hand)
    (tmp_path / "out" / "8.png").unlink()
    with pytest.raises(BadInput, match=r"2\.parquet, row 2, column"):
        opened(folder, images_root=str(tmp_path))


def test_edits_of_arrow_files(tmp_path: Path):
    columns = {**write_files(tmp_path, 4), "prompt": ["a", "b", "c", "d"]}
    path = tmp_path / "part.arrow"
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    change_edits(path, leave_out=[1], column="prompt", captions={3: "x"})
    assert [row.caption for row in opened(path)] == ["a", "c", "x"]


def test_captions_of_repeated_values_and_of_a_column_of_nulls_are_edited(tmp_path: Path):
    columns = write_files(tmp_path, 6)
    for prompts in (["same words"] * 6, pa.nulls(6), pa.array(["a", None] * 3).dictionary_encode()):
        path = write(tmp_path, {**columns, "prompt": prompts}, use_dictionary=True)
        change_edits(path, leave_out=[1], column="prompt", captions={n: f"text {n}" for n in range(6)})
        assert [row.caption for row in opened(path)] == ["text 0", "text 2", "text 3", "text 4", "text 5"]
        discard_edits(path)


@pytest.mark.slow
def test_an_edited_dataset_trains_what_a_parquet_written_so_trains(runs: Runs, model: EditModel):
    runs.write(8)
    table = pq.read_table(runs.parquet)
    change_edits(runs.parquet, leave_out=[0, 5], column="words", captions={3: "all in blue"})
    runs.run(model, "edited", batch_size=2)
    discard_edits(runs.parquet)
    words = ["all in blue" if n == 3 else text for n, text in enumerate(table["words"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("words"), "words", pa.array(words))
    pq.write_table(table.take([1, 2, 3, 4, 6, 7]), runs.parquet)
    runs.run(model, "by_hand", batch_size=2)
    (edited,), (by_hand,) = ((runs.folder / name).glob("*.safetensors") for name in ("edited", "by_hand"))
    assert runs.losses("edited") == runs.losses("by_hand")
    assert edited.read_bytes() == by_hand.read_bytes()
    one, other = (json.loads((runs.folder / name / "run.json").read_text()) for name in ("edited", "by_hand"))
    assert one["fingerprint"] == other["fingerprint"]


def test_captions_of_another_column_stay_as_they_are(tmp_path: Path):
    columns = write_files(tmp_path, 4)
    path = write(tmp_path, {**columns, "other": ["x"] * 4})
    change_edits(path, column="prompt", captions={1: "edited"})
    assert {row.caption for row in opened(path, caption_column="other")} == {"x"}


def test_changes_add_up_and_the_last_one_taken_back_leaves_no_file(tmp_path: Path):
    path = write(tmp_path, write_files(tmp_path, 4))
    change_edits(path, leave_out=[3])
    change_edits(path, leave_out=[1], column="prompt", captions={0: "a", 2: "b"})
    assert read_edits(path) == RowEdits((1, 3), {"prompt": {0: "a", 2: "b"}})
    change_edits(path, take_back=[3, 1], column="prompt", captions={0: None, 2: None})
    assert not edits_file(path).exists()
    for rows in ([4], [-1]):
        with pytest.raises(BadInput, match="has rows 0 to 3"):
            change_edits(path, leave_out=rows)
    for text, why in (("x" * 70_000, "longer than"), ("\ud800", "not valid Unicode"), (7, "is not text")):
        with pytest.raises(BadInput, match=why):
            change_edits(path, column="prompt", captions={0: text})
    assert not edits_file(path).exists()


CHANGING = """
import sys
from pathlib import Path
from trainer.data.row_edits import change_edits
for row in range(10):
    change_edits(Path(sys.argv[1]), leave_out=[10 * int(sys.argv[2]) + row])
"""


@pytest.mark.slow
def test_several_programs_change_edits_at_a_time(tmp_path: Path):
    parquet = write(tmp_path, {"prompt": ["x"] * 40}, "many.parquet")
    changing = [
        subprocess.Popen([sys.executable, "-c", CHANGING, str(parquet), str(part)], cwd=Path(__file__).parents[2])
        for part in range(4)
    ]
    assert [process.wait(timeout=120) for process in changing] == [0] * 4
    assert read_edits(parquet).left_out == tuple(range(40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.parquet", "many.parquet.edits.json"]


def test_edits_never_apply_to_other_rows(tmp_path: Path):
    columns = write_files(tmp_path, 6)
    path = write(tmp_path, columns)
    change_edits(path, **{**EDITS, "leave_out": [0]})
    for other in (
        {name: cells[:5] for name, cells in columns.items()},
        {name: cells[::-1] for name, cells in columns.items()},
    ):
        write(tmp_path, other)
        with pytest.raises(BadInput, match="was written again") as error:
            opened(path)
        assert str(edits_file(path)) in str(error.value)
        with pytest.raises(BadInput, match="was written again"):
            change_edits(path, leave_out=[1])
    write(tmp_path, columns)
    assert len(opened(path)) == 5


def test_edits_stay_where_rows_are_added(tmp_path: Path):
    columns = write_files(tmp_path, 6)
    path = write(tmp_path, {name: cells[:5] for name, cells in columns.items()})
    change_edits(path, leave_out=[0], column="prompt", captions={2: "x"})
    with edits_kept(path):
        write(tmp_path, columns)
    assert [row.caption for row in opened(path)] == ["edit 1", "x", "edit 3", "edit 4", "edit 5"]
    write(tmp_path, {name: cells[1:] for name, cells in columns.items()})
    with edits_kept(path):
        write(tmp_path, columns)
    edits_file(path).write_text("{")
    with edits_kept(path):
        write(tmp_path, columns)
    with pytest.raises(BadInput, match="not valid JSON"):
        opened(path)


def test_all_rows_left_out(tmp_path: Path):
    path = write(tmp_path, write_files(tmp_path, 2))
    change_edits(path, leave_out=[0, 1])
    with pytest.raises(BadInput, match="all 2 are left out"):
        opened(path)


def test_faults_name_the_rows_of_the_file(tmp_path: Path):
    columns = write_files(tmp_path, 6)
    (tmp_path / "out" / "4.png").unlink()
    path = write(tmp_path, columns)
    change_edits(path, leave_out=[0, 2])
    with pytest.raises(BadInput, match="row 4, column"):
        opened(path)
    dataset = opened(path, bad_rows="skip")
    with pytest.raises(BadInput, match="row 3, column"):
        opened(write(tmp_path, columns, "again.parquet"), bad_rows="skip").exclude(
            {n: ("prompt", "too long") for n in (0, 1, 2, 3, 5)}
        )
    dataset.exclude({1: ("prompt", "too long")})
    assert [fault.row for fault in dataset.report.bad] == [3, 4]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"left_out": [6]}, "does not have"),
        ({"left_out": [True]}, "does not have"),
        ({"left_out": "all"}, "does not have"),
        ({"captions": {"prompt": {"6": "x"}}}, "does not have"),
        ({"captions": {"prompt": {"-1": "x"}}}, "does not have"),
        ({"captions": {"prompt": {"1": 7}}}, "is not text"),
        ({"captions": ["x"]}, "no captions by column"),
        ({"rows": "6"}, "for which rows"),
        ({"version": 99}, "later version"),
        (None, "checksum"),
    ],
)
def test_damaged_edits_are_refused(tmp_path: Path, change: dict | None, why: str):
    path = write(tmp_path, write_files(tmp_path, 6))
    write_edits(path, RowEdits((1,), {}))
    file = edits_file(path)
    record = json.loads(file.read_text())
    if change is None:
        file.write_text(json.dumps(record | {"left_out": [2]}))
    elif "version" in change:
        file.write_text(json.dumps({key: value for key, value in record.items() if key != "checksum"}))
        record = {key: value for key, value in record.items() if key not in ("checksum", "version")} | change
        file.write_text(json.dumps(record | {"checksum": _record_checksum(record, ())}))
    else:
        write_record(file, record | change)
    with pytest.raises(BadInput, match=why) as error:
        opened(path)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("checked", [True, False])
def test_mutated_edits_are_read_right_or_refused(tmp_path: Path, checked: bool):
    path = write(tmp_path, write_files(tmp_path, 6))
    change_edits(path, leave_out=[1, 4], column="prompt", captions={2: "blue", 3: "ü"})
    edits, file = read_edits(path), edits_file(path)
    if not checked:
        record = json.loads(file.read_text())
        del record["checksum"], record["version"]
        file.write_text(json.dumps(record, indent=1))
    data, random = file.read_bytes(), Random(7)
    for _ in range(400):
        mutated = bytearray(data)
        for _ in range(random.choice((1, 1, 3))):
            at = random.randrange(len(mutated))
            mutated[at : at + random.choice((0, 1, 1, 8))] = random.choice(
                (b"", b"9", b"-", b"{}", b"null", b"\xff", b'"')
            )
        file.write_bytes(mutated)
        try:
            found = read_edits(path)
        except BadInput:
            continue
        if checked:
            assert found == edits
        assert all(0 <= row < 6 for row in (*found.left_out, *found.captions.get("prompt", {})))


def test_inspect_says_what_is_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, write_files(tmp_path, 6))
    columns = ["--caption-column", "prompt", "--control-image-column", "before", "--image-column", "after"]
    change_edits(path, **{**EDITS, "leave_out": [0]})
    assert main(["inspect", str(path), *columns]) == 0
    assert "edits    1 row left out, 2 captions edited" in capsys.readouterr().out
    assert main(["inspect", str(path), *columns, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert (report["rows"], report["left_out"], report["edited_captions"]) == (5, 1, 2)
