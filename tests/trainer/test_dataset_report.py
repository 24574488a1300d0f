from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa

from .edits import opened, png, write, write_files


def test_sizes(tmp_path):
    columns = write_files(tmp_path, 5)
    for number, size in enumerate([(10, 10), (40, 10), (10, 40), (30, 30), (20, 20)]):
        (tmp_path / "in" / f"{number}.png").write_bytes(png(number, size))
    (sizes,) = opened(write(tmp_path, columns)).report.control_sizes
    assert (sizes.smallest, sizes.median, sizes.largest) == ((10, 10), (10, 40), (30, 30))
    assert (sizes.min_aspect, sizes.max_aspect) == (0.25, 4)


def warnings_of(folder: Path, columns: dict, **names: str) -> str:
    return "\n".join(opened(write(folder, columns), **names).report.warnings)


def test_a_good_dataset_has_no_warnings(tmp_path):
    assert warnings_of(tmp_path, write_files(tmp_path, 5)) == ""


def test_identical_pairs_are_warned_of(tmp_path):
    columns = write_files(tmp_path, 5)
    shutil.copy(tmp_path / "in" / "2.png", tmp_path / "out" / "2.png")
    assert "show the same in 1 of 5 sampled rows" in warnings_of(tmp_path, columns)
    assert "the same image in 5 of 5 rows" in warnings_of(tmp_path, {**columns, "after": columns["before"]})
    columns["before"] = pa.array([{"bytes": png(n), "path": "image.png"} for n in range(5)])
    columns["after"] = pa.array([{"bytes": png(n + 1), "path": "image.png"} for n in range(5)])
    assert warnings_of(tmp_path, columns) == ""


def test_swapped_columns_are_warned_of(tmp_path):
    columns = write_files(tmp_path, 3)
    swapped = {"control_image_column": "after", "image_column": "before"}
    assert "look swapped" in warnings_of(tmp_path, columns, **swapped)
    neutral = {"prompt": columns["prompt"], "a": columns["after"], "b": columns["before"]}
    for folder, renamed in (("in", "sources"), ("out", "targets")):
        (tmp_path / folder).rename(tmp_path / renamed)
        neutral = json.loads(json.dumps(neutral).replace(f'"{folder}/', f'"{renamed}/'))
    assert "look swapped" in warnings_of(tmp_path, neutral, control_image_column="a", image_column="b")
    assert "look swapped" not in warnings_of(tmp_path, neutral, control_image_column="b", image_column="a")


def test_empty_captions_are_warned_of_and_one_caption_for_all_is_not(tmp_path):
    columns = write_files(tmp_path, 4)
    assert "2 of 4 captions are empty" in warnings_of(tmp_path, {**columns, "prompt": ["a", "", "b", " "]})
    assert warnings_of(tmp_path, {**columns, "prompt": ["make it red"] * 4}) == ""
