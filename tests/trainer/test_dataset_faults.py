from __future__ import annotations

import base64
import json
import os
import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import validation as dataset_check
from trainer.data.cell_checks import suspicious_cells
from trainer.data.cells import Cells
from trainer.data.image_refs import image_ref
from trainer.data.load_request import resolve_resource
from trainer.data.parquet import column_faults
from trainer.data.report import BadRows
from trainer.errors import BadImage, BadInput

from .edits import NAMES, assert_rows_belong_together, opened, png, write, write_files


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
    (2, "before", "../../etc/passwd: leaves the images folder"),
    (3, "after", "/etc/passwd: absolute paths are not allowed; make it relative to the images folder"),
    (4, "after", "file:///etc/passwd: file: is not allowed; use a relative path or an http(s) URL"),
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


@pytest.mark.slow
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


def test_missing_files_are_one_cause(tmp_path):
    columns = write_files(tmp_path, 30)
    for folder in ("in", "out"):
        (tmp_path / folder).rename(tmp_path / f"moved {folder}")
    with pytest.raises(BadInput, match="the images that the 30 rows name are not there") as caught:
        opened(write(tmp_path, columns))
    assert 'row 0, column "after": out/0.png: no such file below' in str(caught.value)
    assert "set images_root" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_told_from_a_text_that_quotes_the_words(tmp_path):
    columns = write_files(tmp_path, 2)
    columns["before"] = ["gone.png", "in\n: no such file below here.png"]
    columns["after"][0] = "out/gone.png"
    with pytest.raises(BadRows) as caught:
        opened(write(tmp_path, columns))
    found = [(fault.row, fault.column, fault.missing_file) for fault in caught.value.report.bad]
    assert found == [
        (0, "after", ("out/gone.png", str(tmp_path))),
        (0, "before", ("gone.png", str(tmp_path))),
        (1, "before", None),
    ]
    assert pickle.loads(pickle.dumps(caught.value.report.bad)) == caught.value.report.bad
    assert pickle.loads(pickle.dumps(caught.value.report.bad[0])).missing_file == found[0][2]


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


def test_a_decoded_image_in_text_form_is_refused(tmp_path):
    columns = write_files(tmp_path, 2)
    columns["after"][1] = "data:image/png;base64," + base64.b64encode(np.zeros(30, np.uint8)).decode()
    with pytest.raises(BadInput, match=r'row 1, column "after": data:image.*data: is not allowed'):
        opened(write(tmp_path, columns))


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
    (tmp_path / "sub").mkdir()
    with pytest.raises(BadInput, match="is a folder without a parquet file"):
        opened(tmp_path / "sub")


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


PICTURE = png(1)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image; save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image; save it as JPEG or PNG"),
        (base64.b64encode(PICTURE), "base64 text; decode it and store the bytes"),
        (b"data:image/png;base64," + base64.b64encode(PICTURE), "base64 text; decode it and store the bytes"),
        (b" <!DOCTYPE html>", "it looks like a web page"),
        (base64.b64encode(PICTURE).decode(), "is base64 text; decode it and store the bytes"),
        ("/9j/4AAQSkZJRgABAQAAAQABAAD", "is base64 text; decode it and store the bytes"),
        (base64.b64encode(PICTURE * 2000).decode(), "is longer than 65,536 bytes; store images as bytes"),
        ("hf://datasets/a/b/c.png", "hf:// is not read; download the dataset"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_picture_is_named(cell: str | bytes, says: str, tmp_path: Path):
    columns = {"prompt": ["a", "b"], "before": [cell, cell], "after": [PICTURE, PICTURE]}
    with pytest.raises(BadInput, match=f'row 1, column "before": .*{says}'):
        opened(write(tmp_path, columns))


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "lfs.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(BadInput, match=r"a Git LFS pointer.*run `git lfs pull`"):
        opened(tmp_path / "lfs.parquet")
    shards = tmp_path / "data"
    shards.mkdir()
    with pytest.raises(BadInput, match="is a folder without a parquet file"):
        opened(shards)
    with pytest.raises(BadInput, match="is a pattern that no parquet file matches"):
        resolve_resource(str(shards / "*.parquet"))
    with pytest.raises(BadInput, match="is an address; download the parquet first"):
        resolve_resource("https://example.com/c.parquet")
