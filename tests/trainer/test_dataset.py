from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import time
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer import dataset_check, rows
from trainer.dataset import EditDataset, drain, open_dataset
from trainer.dataset_check import suspicious_cells
from trainer.downloads import Downloads
from trainer.errors import BadImage, BadInput
from trainer.events import Progress
from trainer.images import decode_image, image_ref
from trainer.request import load_request
from trainer.resource import column_faults, parquet_columns, resolve_resource
from trainer.rows import Cells, RowBlocks

from .image_server import image_server

NAMES = {"caption_column": "prompt", "control_image_column": "before", "image_column": "after"}


def png(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of one colour, which names the number."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 77)).save(stream, "PNG")
    return stream.getvalue()


def number_of(data: bytes) -> int:
    red, green, _ = decode_image(data).getpixel((0, 0))
    return red + 256 * green


def write_files(folder: Path, count: int) -> dict[str, list[str]]:
    """`count` rows as columns of relative paths; the control of row n shows n, its target n + 1000."""
    for name in ("in", "out"):
        (folder / name).mkdir(exist_ok=True)
    for number in range(count):
        (folder / "in" / f"{number}.png").write_bytes(png(number))
        (folder / "out" / f"{number}.png").write_bytes(png(number + 1000))
    return {
        "prompt": [f"edit {number}" for number in range(count)],
        "before": [f"in/{number}.png" for number in range(count)],
        "after": [f"out/{number}.png" for number in range(count)],
    }


def write(folder: Path, columns: dict, name: str = "edits.parquet", **options: object) -> Path:
    pq.write_table(pa.table(columns), folder / name, **options)
    return folder / name


def opened(path: Path, **options: object) -> EditDataset:
    return drain(open_dataset(path, **{**NAMES, **options}))


def assert_rows_belong_together(dataset: EditDataset, numbers: list[int]) -> None:
    """Every access gives caption, control and target of the same row."""
    assert len(dataset) == len(numbers)
    for place, (row, number) in enumerate(zip(dataset, numbers, strict=True)):
        assert row == dataset[place] == dataset.at_row(number)
        assert row.row == number
        assert row.caption == f"edit {number}"
        (control,) = row.controls
        assert number_of(dataset.fetch(control)) == number
        assert number_of(dataset.fetch(row.target)) == number + 1000


# forms and writers


def test_pandas_writes_paths_bytes_and_structs(tmp_path):
    columns = write_files(tmp_path, 7)
    blobs = [png(number + 1000) for number in range(7)]
    structs = [
        {"bytes": blob if number % 2 else None, "path": f"out/{number}.png"} for number, blob in enumerate(blobs)
    ]
    for after in (columns["after"], blobs, structs):
        frame = pandas.DataFrame({**columns, "after": after, "other": range(7)})
        frame.to_parquet(tmp_path / "edits.parquet", row_group_size=3)
        assert_rows_belong_together(opened(tmp_path / "edits.parquet"), list(range(7)))
    frame = pandas.DataFrame(columns).astype({"prompt": "category", "before": "category", "after": "string"})
    frame.to_parquet(tmp_path / "edits.parquet")
    assert_rows_belong_together(opened(tmp_path / "edits.parquet"), list(range(7)))


def test_polars_writes_paths_bytes_categories_and_structs(tmp_path):
    columns = write_files(tmp_path, 7)
    frame = polars.DataFrame(columns)
    blobs = [png(number + 1000) for number in range(7)]
    for changed in (
        frame,
        frame.with_columns(
            polars.col("before").cast(polars.Categorical), polars.col("prompt").cast(polars.Categorical)
        ),
        frame.with_columns(polars.Series("after", blobs)),
        frame.with_columns(polars.Series("after", [{"bytes": blob, "path": None} for blob in blobs])),
    ):
        changed.write_parquet(tmp_path / "edits.parquet", row_group_size=3)
        assert_rows_belong_together(opened(tmp_path / "edits.parquet"), list(range(7)))


def test_hugging_face_datasets_write_image_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = write_files(tmp_path, 5)
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "before": datasets.Image(), "after": datasets.Image()}
    )
    table = {
        "prompt": columns["prompt"],
        "before": [Image.open(tmp_path / path).convert("RGB") for path in columns["before"]],
        "after": [str(tmp_path / path) for path in columns["after"]],
    }
    made = datasets.Dataset.from_dict(table, features=features)
    path = tmp_path / "edits.parquet"
    embedded = made.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    embedded.to_parquet(path, batch_size=2)
    assert_rows_belong_together(opened(path), list(range(5)))
    relative = pa.table({**columns, "after": [{"bytes": None, "path": path} for path in columns["after"]]})
    datasets.Dataset(relative).cast_column("after", datasets.Image(decode=False)).to_parquet(path)
    assert_rows_belong_together(opened(path), list(range(5)))
    made.to_parquet(path)
    with pytest.raises(BadInput, match=r"absolute paths are not allowed.*or embed the image's bytes"):
        opened(path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_text_types(tmp_path, kind):
    columns = {name: pa.array(values).cast(kind) for name, values in write_files(tmp_path, 4).items()}
    assert_rows_belong_together(opened(write(tmp_path, columns, row_group_size=3)), list(range(4)))


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary()), pa.binary(len(png(0)))],
    ids=str,
)
def test_binary_types(tmp_path, kind):
    columns = write_files(tmp_path, 4)
    for name, first in (("before", 0), ("after", 1000)):
        values = pa.array([png(first + number) for number in range(4)])
        columns[name] = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    assert_rows_belong_together(opened(write(tmp_path, columns)), list(range(4)))


def test_structs_with_one_field_only(tmp_path):
    columns = write_files(tmp_path, 3)
    columns["before"] = pa.array([{"path": path} for path in columns["before"]])
    columns["after"] = pa.array([{"bytes": png(1000 + number)} for number in range(3)])
    assert_rows_belong_together(opened(write(tmp_path, columns)), list(range(3)))
    columns["after"] = pa.array([{"bytes": None, "path": f"out/{number}.png"} for number in range(3)])
    assert_rows_belong_together(opened(write(tmp_path, columns)), list(range(3)))


def test_windows_paths_unicode_names_and_columns_with_dots(tmp_path):
    columns = write_files(tmp_path, 2)
    (tmp_path / "in" / "ünï 写真.png").write_bytes(png(1))
    columns["before"] = ["in\\0.png", "in\\ünï 写真.png"]
    columns = {"a.prompt": columns["prompt"], "a.before": columns["before"], "ä": columns["after"], "a": [1, 2]}
    path = write(tmp_path, columns)
    names = {"caption_column": "a.prompt", "control_image_column": "a.before", "image_column": "ä"}
    assert_rows_belong_together(opened(path, **names), [0, 1])


def test_addresses(tmp_path):
    columns = write_files(tmp_path, 3)
    with image_server() as server:
        columns["before"] = [server.serve(f"/{number}.png", png(number)) for number in range(3)]
        downloads = Downloads(tmp_path / "downloads")
        path = write(tmp_path, columns)
        assert_rows_belong_together(opened(path, downloads=downloads), [0, 1, 2])
        assert len(server.asked) == 3


def test_a_url_that_hangs_is_a_bad_row_and_fails_in_time(tmp_path):
    columns = write_files(tmp_path, 40)
    with image_server() as server:
        columns["after"] = [server.page(f"/{n}", lambda _: server.closing.wait(30)) for n in range(40)]
        path = write(tmp_path, columns)
        began = time.monotonic()
        with pytest.raises(BadInput, match=r'row 0, column "after": http://.*: the server did not deliver') as caught:
            opened(path, downloads=Downloads(tmp_path / "downloads", timeout=0.5, deadline=1))
        assert time.monotonic() - began < 10
        assert "no rows left" in str(caught.value)


def test_images_root(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    columns = write_files(tmp_path / "pictures", 2)
    path = write(tmp_path, columns)
    monkeypatch.chdir(tmp_path.parent)
    for root in ("pictures", str(tmp_path / "pictures"), os.path.relpath(tmp_path / "pictures")):
        assert_rows_belong_together(opened(path, images_root=root), [0, 1])
    with pytest.raises(BadInput, match=r'images_root: "none" is not a folder'):
        opened(path, images_root="none")
    with pytest.raises(BadInput, match=r"in/0\.png: no such file below"):
        opened(path)


# access


def test_large_row_groups_are_read_in_blocks_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2000)
    count = 60
    columns = {
        "prompt": [f"edit {number}" for number in range(count)],
        "before": [png(number) for number in range(count)],
        "after": [png(number + 1000) for number in range(count)],
    }
    path = write(tmp_path, columns, row_group_size=25, use_dictionary=False)
    blocks = [block.rows for block in RowBlocks(path, list(NAMES.values()))]
    assert sum(blocks) == count and max(blocks) < 25
    dataset = opened(path)
    assert_rows_belong_together(dataset, list(range(count)))
    places = list(range(count)) * 3
    random.Random(5).shuffle(places)
    for place in places:
        row = dataset[place]
        assert (row.caption, number_of(dataset.fetch(row.target))) == (f"edit {place}", place + 1000)
    for place in (-1, count):
        with pytest.raises(IndexError):
            dataset[place]


def test_progress_is_told_and_can_be_stopped(tmp_path):
    path = write(tmp_path, write_files(tmp_path, 10), row_group_size=5)
    events = list(open_dataset(path, **NAMES))
    assert all(isinstance(event, Progress) and event.phase == "checking" for event in events)
    assert (events[-1].done, events[-1].total) == (10, 10)
    stopped = open_dataset(path, **NAMES)
    next(stopped)
    stopped.close()


# bad rows


def bad_columns(folder: Path) -> dict[str, list]:
    columns = write_files(folder, 12)
    (folder / "in" / "zero.png").touch()
    (folder / "in" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    columns["prompt"][1] = None
    columns["before"][2] = "../../etc/passwd"
    columns["after"][3] = "/etc/passwd"
    columns["after"][4] = "file:///etc/passwd"
    columns["before"][5] = "in/zero.png"
    columns["before"][6] = "in/corrupt.jpg"
    columns["after"][7] = None
    columns["before"][8] = "in/missing.png"
    columns["before"][9] = ""
    return columns


BAD = [
    (1, "prompt", "is null"),
    (2, "before", "../../etc/passwd: leaves the images' folder"),
    (3, "after", "/etc/passwd: absolute paths are not allowed; make it relative to the images' folder"),
    (4, "after", "file:///etc/passwd: file: is not allowed; use a relative path or an http(s) address"),
    (5, "before", "in/zero.png: is empty (0 bytes)"),
    (6, "before", "the image is damaged or cut off"),
    (7, "after", "is null"),
    (8, "before", "in/missing.png: no such file below"),
    (9, "before", "is empty text"),
]


def test_bad_rows_stop_with_one_message_that_names_them(tmp_path):
    path = write(tmp_path, bad_columns(tmp_path), row_group_size=4)
    with pytest.raises(BadInput) as caught:
        opened(path)
    message = str(caught.value)
    assert message.startswith(f"{path} has 9 bad rows of 12 (counted from 0):")
    for row, column, why in BAD:
        assert f'row {row}, column "{column}": ' in message
        assert why in message
    assert 'set bad_rows to "skip"' in message


def test_bad_rows_are_skipped_and_listed(tmp_path):
    path = write(tmp_path, bad_columns(tmp_path), row_group_size=4)
    dataset = opened(path, bad_rows="skip")
    assert_rows_belong_together(dataset, [0, 10, 11])
    report = dataset.report
    assert (report.rows, report.good_rows, report.bad_rows) == (12, 3, 9)
    assert [(fault.row, fault.column) for fault in report.bad] == [(row, column) for row, column, _ in BAD]
    assert all(why in fault.why for fault, (_, _, why) in zip(report.bad, BAD, strict=True))
    assert json.loads(json.dumps(report.to_dict()))["bad"][0] == {"row": 1, "column": "prompt", "why": "is null"}
    assert "12 rows, 3 usable, 9 bad" in str(report)


def test_a_huge_png_header_is_a_bad_row(tmp_path):
    columns = write_files(tmp_path, 2)
    data = bytearray(png(0))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "in" / "0.png").write_bytes(data)
    with pytest.raises(BadInput, match=r"row 0, .*60000 x 60000 pixels is too large"):
        opened(write(tmp_path, columns))


def test_the_first_twenty_bad_rows_are_listed_and_all_are_counted(tmp_path):
    columns = write_files(tmp_path, 60)
    for row in range(5, 50):
        columns["after"][row] = None
        columns["prompt"][row] = None
    report = opened(write(tmp_path, columns, row_group_size=7), bad_rows="skip").report
    assert report.bad_rows == 45
    assert [fault.row for fault in report.bad] == sorted([*range(5, 25), *range(5, 25)])
    assert report.bad_row_lines()[-1] == "and 25 rows more"


def test_all_rows_are_checked_beyond_the_sample(tmp_path):
    columns = write_files(tmp_path, 1)
    columns = {name: values * 3000 for name, values in columns.items()}
    columns["before"][1501] = "a/../../b.png"
    columns["after"][1502] = "C:\\b.png"
    columns["prompt"][1503] = None
    columns["after"][1504] = "out/missing.png"
    report = opened(write(tmp_path, columns), bad_rows="skip").report
    assert [fault.row for fault in report.bad] == [1501, 1502, 1503, 1504]
    assert report.sampled == dataset_check.SAMPLED_ROWS


def test_no_rows_left(tmp_path):
    columns = write_files(tmp_path, 3)
    columns["prompt"] = pa.nulls(3)
    with pytest.raises(BadInput, match="no rows left, all 3 are bad"):
        opened(write(tmp_path, columns), bad_rows="skip")


def test_text_that_is_not_utf8(tmp_path):
    columns = write_files(tmp_path, 3)
    for name, row in (("prompt", 0), ("before", 2)):
        raw = [value.encode() for value in columns[name]]
        raw[row] = b"\xff\xfe.png"
        array = pa.array(raw, pa.binary())
        columns[name] = pa.StringArray.from_buffers(3, array.buffers()[1], array.buffers()[2])
    dataset = opened(write(tmp_path, columns), bad_rows="skip")
    assert [(fault.row, fault.why) for fault in dataset.report.bad] == [
        (0, "is not valid UTF-8 text"),
        (2, "is not valid UTF-8 text"),
    ]
    assert_rows_belong_together(dataset, [1])


def test_rows_found_bad_later(tmp_path):
    path = write(tmp_path, write_files(tmp_path, 6))
    dataset = opened(path, bad_rows="skip")
    before = dataset.fingerprint()
    dataset.exclude({4: ("after", "cut off"), 1: ("before", "gone")})
    assert_rows_belong_together(dataset, [0, 2, 3, 5])
    assert [tuple(fault) for fault in dataset.report.bad] == [(1, "before", "gone"), (4, "after", "cut off")]
    assert dataset.report.good_rows == 4
    assert dataset.fingerprint() == before
    with pytest.raises(BadInput, match="no rows left"):
        dataset.exclude({row: ("after", "gone") for row in (0, 2, 3, 5)})
    with pytest.raises(BadInput, match=r'has 1 bad row of 6 \(counted from 0\):\n  - row 2, column "after": cut off'):
        opened(path).exclude({2: ("after", "cut off")})


def test_the_cheap_filter_stops_all_that_is_refused():
    pieces = [
        "..",
        "/",
        "\\",
        "a",
        "C:",
        "file:",
        "http://",
        "https://",
        "x.org",
        " ",
        "\n",
        "é",
        "\u3000",
        "[",
        "@",
        "",
    ]
    pick = random.Random(1)
    texts = ["".join(pick.choices(pieces, k=pick.randint(0, 6))) for _ in range(20_000)]
    mask = suspicious_cells(Cells(pa.array(texts, pa.large_string()), None))
    refused = 0
    for text, suspicious in zip(texts, mask, strict=True):
        try:
            image_ref(text)
        except BadImage:
            refused += 1
            assert suspicious, repr(text)
    assert refused > 1000
    assert not suspicious_cells(Cells(pa.array(["a/b c.png", "https://x.org/a.png"], pa.large_string()), None)).any()


# files that are no dataset


def test_files_that_are_no_usable_parquet(tmp_path):
    columns = write_files(tmp_path, 50)
    good = write(tmp_path, columns)
    data = good.read_bytes()
    cases = {
        "text.parquet": (b"prompt,before,after\n" * 10, "cannot be read as a parquet"),
        "zero.parquet": (b"", "is empty"),
        "cut.parquet": (data[: len(data) // 2], "cannot be read as a parquet"),
        "short.parquet": (b"PAR1", "cannot be read as a parquet"),
        "encrypted.parquet": (b"PARE" + data[4:-4] + b"PARE", "cannot be read as a parquet"),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=says) as caught:
            opened(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="does not exist"):
        opened(tmp_path / "none.parquet")
    with pytest.raises(BadInput, match="is a folder"):
        opened(tmp_path)


def test_a_parquet_damaged_in_the_middle(tmp_path):
    columns = write_files(tmp_path, 50)
    path = write(tmp_path, columns, compression="snappy", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[40:200] = os.urandom(160)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="is damaged: row group 0"):
        opened(path)


def test_an_empty_parquet(tmp_path):
    columns = {name: pa.array([], pa.string()) for name in NAMES.values()}
    with pytest.raises(BadInput, match="no rows"):
        opened(write(tmp_path, columns))


def test_columns_that_cannot_serve(tmp_path):
    table = pa.table(
        [
            pa.array([["a"]]),
            pa.array([1]),
            pa.array([{"bytes": b"x", "label": 3}]),
            pa.array(["x"]),
            pa.array(["x"]),
            pa.array([b"x"]),
        ],
        names=["captions", "number", "struct", "twice", "twice", "data"],
    )
    path = tmp_path / "edits.parquet"
    pq.write_table(table, path)
    names = {"caption_column": "captions", "control_image_column": "number", "image_column": "struct"}
    with pytest.raises(BadInput) as caught:
        opened(path, **names)
    message = str(caught.value)
    assert 'caption_column: "captions" holds list<' in message
    assert 'control_image_column: "number" holds int64' in message
    assert 'image_column: "struct" holds struct<' in message
    assert column_faults({"caption_column": "data"}, path)[0].startswith('caption_column: "data" holds binary')
    assert "2 columns named" in column_faults({"caption_column": "twice"}, path)[0]
    assert column_faults({"control_image_column": "data", "image_column": "data"}, path) == [
        'image_column: "data" is also the control_image_column; each needs a column of its own'
    ]
    assert column_faults({"caption_column": "", "image_column": 3}, path) == []


# the report


def test_sizes(tmp_path):
    columns = write_files(tmp_path, 5)
    for number, size in enumerate([(10, 10), (40, 10), (10, 40), (30, 30), (20, 20)]):
        (tmp_path / "in" / f"{number}.png").write_bytes(png(number, size))
    sizes = opened(write(tmp_path, columns)).report.control_sizes
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


def test_captions_are_warned_of(tmp_path):
    columns = write_files(tmp_path, 4)
    assert "2 of 4 captions are empty" in warnings_of(tmp_path, {**columns, "prompt": ["a", "", "b", " "]})
    assert 'every caption is the same: "make it red"' in warnings_of(
        tmp_path, {**columns, "prompt": ["make it red"] * 4}
    )


# the fingerprint


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    columns = write_files(tmp_path, 6)
    path = write(tmp_path, columns)
    first = opened(path).fingerprint()
    polars.DataFrame({**columns, "other": range(6)}).write_parquet(tmp_path / "b.parquet", row_group_size=2)
    assert opened(tmp_path / "b.parquet").fingerprint() == first
    pandas.DataFrame(columns).astype("category").to_parquet(tmp_path / "c.parquet")
    assert opened(tmp_path / "c.parquet").fingerprint() == first
    for column, value in (("prompt", "another"), ("after", "out/0.png")):
        changed = {**columns, column: [*columns[column][:3], value, *columns[column][4:]]}
        assert opened(write(tmp_path, changed, "d.parquet")).fingerprint() != first
    reordered = {name: values[::-1] for name, values in columns.items()}
    assert opened(write(tmp_path, reordered, "e.parquet")).fingerprint() != first
    joined = {**columns, "prompt": ["edit 0e", "dit 1", *columns["prompt"][2:]]}
    assert opened(write(tmp_path, joined, "f.parquet")).fingerprint() != first
    (tmp_path / "out" / "3.png").write_bytes(png(2000, (9, 9)))
    assert opened(path).fingerprint() != first


def test_the_fingerprint_covers_embedded_bytes(tmp_path):
    columns = write_files(tmp_path, 3)
    prints = set()
    for start in (0, 1, 0):
        columns["before"] = [png(start + number) for number in range(3)]
        prints.add(opened(write(tmp_path, columns)).fingerprint())
    assert len(prints) == 2


# requests and resources


def request_of(resource: str, **params: object) -> dict:
    return {
        "resource": resource,
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": {**NAMES, **params},
    }


def test_a_resource_is_looked_for_in_order(tmp_path, monkeypatch):
    here, inputs, beside = tmp_path / "here", tmp_path / "input", tmp_path / "request"
    for folder in (here, inputs, beside):
        folder.mkdir()
    monkeypatch.chdir(here)
    places = [here / "main", inputs / "main", here, inputs]
    for folder in reversed(places):
        folder.mkdir(exist_ok=True)
        (folder / "edits.parquet").touch()
        assert resolve_resource("main/edits.parquet", inputs).resolve() == folder / "edits.parquet"
    assert resolve_resource(str(inputs / "edits.parquet")) == inputs / "edits.parquet"
    (beside / "other.parquet").touch()
    assert resolve_resource("main/other.parquet", inputs, beside) == beside / "other.parquet"
    with pytest.raises(BadInput) as caught:
        resolve_resource("main/none.parquet", inputs)
    for folder in places:
        assert str(folder / "none.parquet") in str(caught.value)
    with pytest.raises(BadInput, match="is a folder"):
        resolve_resource("main", inputs)


def test_a_request_with_its_parquet(tmp_path):
    path = write(tmp_path, write_files(tmp_path, 2))
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request_of("main/edits.parquet", steps=7)))
    request, found = load_request(file)
    assert (request.training_params.steps, found) == (7, path)
    assert load_request(request_of(str(path)))[1] == path
    assert load_request(json.dumps(request_of("edits.parquet")), tmp_path)[1] == path
    assert parquet_columns(path) == {"prompt": "string", "before": "string", "after": "string"}


def test_all_faults_of_a_request_columns_included_in_one_message(tmp_path):
    write(tmp_path, write_files(tmp_path, 2))
    data = request_of("edits.parquet", steps=0, caption_column="promt", image_column="before", learning_rat=1)
    with pytest.raises(BadInput) as caught:
        load_request(data, tmp_path)
    message = str(caught.value)
    assert message.startswith("The request has 4 faults:")
    assert "training_params.steps: 0 is too small" in message
    assert "training_params.learning_rat: unknown field" in message
    assert (
        'training_params.caption_column: "promt" is not a column of edits.parquet (did you mean "prompt"?); '
        'its columns are "prompt", "before", "after"'
    ) in message
    assert 'training_params.image_column: "before" is also the control_image_column' in message
    with pytest.raises(BadInput, match=r"(?s)has 2 faults:.*steps: 0.*resource: .* is not found; tried"):
        load_request(request_of("none.parquet", steps=0), tmp_path)
    (tmp_path / "text.parquet").write_text("hello, this is no parquet")
    with pytest.raises(BadInput, match=r"(?s)has 2 faults:.*steps: 0.*resource: .*cannot be read as a parquet"):
        load_request(request_of("text.parquet", steps=0), tmp_path)
    for data in ([], None, {}, {"resource": 3, "training_params": []}):
        with pytest.raises(BadInput):
            load_request(json.dumps(data), tmp_path)
    with pytest.raises(BadInput, match=r"Cannot read the request .*none\.json"):
        load_request(tmp_path / "none.json")


def test_a_decoded_image_in_text_form_is_refused(tmp_path):
    columns = write_files(tmp_path, 2)
    columns["after"][1] = "data:image/png;base64," + base64.b64encode(np.zeros(30, np.uint8)).decode()
    with pytest.raises(BadInput, match=r'row 1, column "after": data:image.*data: is not allowed'):
        opened(write(tmp_path, columns))
