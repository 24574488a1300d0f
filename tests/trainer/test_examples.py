"""Examples added to a dataset one by one."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.config.columns import Columns
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.images import decode_image
from trainer.data.row_edits import change_edits
from trainer.errors import BadInput
from trainer.events import drain
from trainer.packing.examples import Added, Example, add_examples

from .edits import png, write

REPO = Path(__file__).parents[2]


def picture(number: int) -> Image.Image:
    return decode_image(png(number))


def example(number: int, controls: int = 1, caption: str = "edit") -> Example:
    return Example(tuple(picture(number + 10 * n) for n in range(controls)), picture(number + 1000), caption)


def opened(added: Added) -> EditDataset:
    return drain(open_dataset(added.parquet, added.columns))


def test_examples_are_appended_once_each_and_rows_keep_their_places(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    first = add_examples(folder, [example(1), example(2), example(1)])
    assert (first.rows, first.new, first.columns) == (2, 2, Columns("caption", ("control",), "target"))
    rows = pq.read_table(first.parquet).to_pylist()
    state = first.parquet.stat()
    again = add_examples(folder, [example(2)])
    assert (again.rows, again.new, again.parquet.stat()) == (2, 0, state)
    more = add_examples(folder, [example(2, caption="another"), example(3)])
    assert (more.rows, more.new) == (4, 2)
    assert pq.read_table(more.parquet).to_pylist()[:2] == rows
    dataset = opened(more)
    assert [row.caption for row in dataset] == ["edit", "edit", "another", "edit"]
    for row, number in zip(dataset, (1, 2, 2, 3), strict=True):
        assert decode_image(dataset.fetch(row.controls[0])).tobytes() == picture(number).tobytes()
        assert decode_image(dataset.fetch(row.target)).tobytes() == picture(number + 1000).tobytes()
    assert len(list((folder / "images").iterdir())) == 6


def test_rows_that_are_left_out_stay_so_when_examples_are_added(tmp_path: Path) -> None:
    added = add_examples(tmp_path, [example(1), example(2)])
    change_edits(added.parquet, leave_out=[0], column="caption", captions={1: "edited"})
    more = opened(add_examples(tmp_path, [example(1), example(3)]))
    assert [(row.row, row.caption) for row in more] == [(0, "edited"), (1, "edit")]


def test_examples_may_have_different_numbers_of_controls(tmp_path: Path) -> None:
    add_examples(tmp_path, [example(1), example(2, 3)])
    added = add_examples(tmp_path, [example(4, 2)])
    assert added.columns.controls == ("control", "control_2", "control_3")
    assert [len(row.controls) for row in opened(added)] == [1, 3, 2]


def test_a_dataset_that_is_open_goes_on_with_its_rows(tmp_path: Path) -> None:
    dataset = opened(add_examples(tmp_path, [example(1), example(2)]))
    add_examples(tmp_path, [example(3)])
    assert [row.row for row in dataset] == [0, 1]
    assert dataset.read_row(1).caption == "edit"


def test_a_parquet_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": ["a"], "before": ["b"], "after": ["c"]}, "dataset.parquet")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="was not made by adding examples"):
        add_examples(tmp_path, [example(1)])
    path.write_bytes(before[:-20])
    with pytest.raises(BadInput, match="cannot be read as a parquet"):
        add_examples(tmp_path, [example(1)])
    assert path.read_bytes() == before[:-20]


def test_a_parquet_with_more_controls_than_there_can_be_is_left_as_it_is(tmp_path: Path) -> None:
    controls = ["control", *(f"control_{number}" for number in range(2, 11))]
    columns = {name: ["x"] for name in [*controls, "target", "caption"]}
    before = write(tmp_path, columns, "dataset.parquet").read_bytes()
    with pytest.raises(BadInput, match="was not made by adding examples"):
        add_examples(tmp_path, [example(1)])
    assert (tmp_path / "dataset.parquet").read_bytes() == before


@pytest.mark.slow
def test_a_small_parquet_of_much_text_takes_little_memory(tmp_path: Path) -> None:
    """Half a megabyte that repeats a long text by dictionary."""
    columns = {"control": ["x"] * 20_000, "target": ["y"] * 20_000, "caption": ["long" * 10_000] * 20_000}
    path = write(tmp_path, columns, "dataset.parquet")
    assert path.stat().st_size < 2**19
    tracemalloc.start()
    assert add_examples(tmp_path, [example(1)]).rows == 20_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.mark.parametrize(("caption", "fault"), [("a\0b", "holds a zero byte"), ("x" * 70_000, "is longer than 65,536")])
def test_a_text_that_cannot_be_a_caption_is_refused(caption: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"caption: .* {fault}"):
        add_examples(tmp_path / "new", [example(1, caption=caption)])
    assert not (tmp_path / "new").exists()


ADDING = """
import sys
from pathlib import Path
from tests.trainer.test_examples import add_examples, example
for number in range(8):
    add_examples(Path(sys.argv[1]), [example(number + int(sys.argv[2]))])
"""


@pytest.mark.slow
def test_several_programs_add_at_a_time(tmp_path: Path) -> None:
    adding = [
        subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path / "set"), str(start)], cwd=REPO)
        for start in (0, 100, 104)
    ]
    assert [process.wait(120) for process in adding] == [0, 0, 0]
    added = add_examples(tmp_path / "set", [example(500)])
    assert added.rows == 8 + 12 + 1
    assert len(opened(added)) == added.rows
