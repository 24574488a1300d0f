from __future__ import annotations

import io
import os
import random
import time
import unicodedata
from contextlib import suppress

import datasets
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.config.columns import Columns
from trainer.data import pages
from trainer.data import parquet_rows as rows
from trainer.data.dataset import open_dataset
from trainer.data.downloads import Downloads
from trainer.data.load_request import resolve_resource
from trainer.data.row_blocks import RowBlocks
from trainer.errors import BadInput
from trainer.events import Progress

from .edits import NAMES, assert_rows_belong_together, number_of, opened, png, write, write_files
from .image_server import image_server


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


def written(*kinds: pa.DataType) -> list[pa.DataType]:
    """Those of these types that this version of pyarrow writes to parquet files: older ones write no views."""
    found = []
    for kind in kinds:
        with suppress(pa.ArrowNotImplementedError):
            pq.write_table(pa.table({"a": pa.array([], kind)}), io.BytesIO())
            found.append(kind)
    return found


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        *written(pa.string_view()),
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
    [
        pa.binary(),
        pa.large_binary(),
        *written(pa.binary_view()),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.binary(len(png(0))),
    ],
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


@pytest.mark.slow
def test_a_url_that_hangs_is_a_bad_row_and_fails_in_time(tmp_path):
    columns = write_files(tmp_path, 40)
    with image_server() as server:
        columns["after"] = [server.page(f"/{n}", lambda _: server.closing.wait(30)) for n in range(40)]
        path = write(tmp_path, columns)
        began = time.monotonic()
        # Which rows are asked for before the server counts as silent depends on the threads.
        with pytest.raises(BadInput, match=r'row \d, column "after": http://.*: the server did not deliver') as caught:
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


def test_names_of_either_unicode_form_are_found(tmp_path):
    columns = write_files(tmp_path, 2)
    for number, form in enumerate(("NFC", "NFD")):
        (tmp_path / "in" / f"{unicodedata.normalize(form, 'é')}{number}.png").write_bytes(png(number))
    columns["before"] = [f"in/{unicodedata.normalize('NFD', 'é')}0.png", f"in/{unicodedata.normalize('NFC', 'é')}1.png"]
    dataset = opened(write(tmp_path, columns))
    assert_rows_belong_together(dataset, [0, 1])
    before = dataset.fingerprint()
    (tmp_path / "in" / f"{unicodedata.normalize('NFC', 'é')}0.png").write_bytes(png(7))
    assert opened(tmp_path / "edits.parquet").fingerprint() != before


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    path = write(tmp_path, write_files(tmp_path / "pictures", 2))
    assert resolve_resource("~/edits.parquet") == path
    assert_rows_belong_together(opened(path, images_root="~/pictures"), [0, 1])


def test_large_row_groups_are_read_in_blocks_at_random(tmp_path, monkeypatch):
    for module in (rows, pages):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2000)
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
    events = list(open_dataset(path, Columns.from_fields(NAMES)))
    assert all(isinstance(event, Progress) and event.phase == "checking" for event in events)
    assert (events[-1].done, events[-1].total) == (10, 10)
    stopped = open_dataset(path, Columns.from_fields(NAMES))
    next(stopped)
    stopped.close()


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
    launched_processes = {**columns, "prompt": ["edit 0e", "dit 1", *columns["prompt"][2:]]}
    assert opened(write(tmp_path, launched_processes, "f.parquet")).fingerprint() != first
    (tmp_path / "out" / "3.png").write_bytes(png(2000, (9, 9)))
    assert opened(path).fingerprint() != first


def test_the_fingerprint_covers_embedded_bytes(tmp_path):
    columns = write_files(tmp_path, 3)
    prints = set()
    for start in (0, 1, 0):
        columns["before"] = [png(start + number) for number in range(3)]
        prints.add(opened(write(tmp_path, columns)).fingerprint())
    assert len(prints) == 2
