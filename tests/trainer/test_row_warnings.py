"""Warnings about single rows, as the page's browser of rows shows them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from trainer.config.columns import Columns
from trainer.data.row_warnings import RowWarnings, scan_rows

from .conftest import shape_picture
from .edits import png as plain
from .edits import write

COLUMNS = Columns("prompt", ("before",), "after")


def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def look(folder: Path, *pairs: tuple, prompts: list | None = None, columns: Columns = COLUMNS) -> list[RowWarnings]:
    before, after = ([pair[index] for pair in pairs] for index in (0, 1))
    path = write(folder, {"prompt": prompts or ["words"] * len(pairs), "before": before, "after": after})
    return list(scan_rows(path, columns, folder))


def test_the_same_and_nearly_the_same_picture(tmp_path: Path):
    picture, other = shape_picture(1, (400, 300)), shape_picture(2, (400, 300))
    touched = picture.copy()
    touched.putpixel((5, 5), (255, 0, 255))
    spot = picture.copy()
    spot.paste((0, 0, 0) if picture.getpixel((5, 5))[0] > 99 else (255, 255, 255), (0, 0, 12, 12))
    found = look(
        tmp_path,
        (encoded(picture), encoded(picture)),
        (encoded(picture), encoded(picture, "BMP")),
        (encoded(picture), encoded(picture, "JPEG", quality=95)),
        (encoded(picture), encoded(touched)),
        (encoded(picture), encoded(spot)),
        (encoded(picture), encoded(other)),
    )
    assert [row.kinds for row in found] == [("same",), ("same",), ("near",), ("near",), (), ()]
    assert [row.row for row in found] == list(range(6))
    assert list(scan_rows(tmp_path / "edits.parquet", COLUMNS, tmp_path, 2)) == found[2:]


def test_shapes_sizes_and_large_jpegs(tmp_path: Path):
    wide, square = shape_picture(1, (900, 600)), shape_picture(2, (2000, 2000))
    found = look(
        tmp_path,
        (encoded(wide), encoded(square, "JPEG")),
        (encoded(wide), encoded(wide.resize((450, 300)).transpose(Image.Transpose.FLIP_TOP_BOTTOM), "JPEG")),
    )
    assert [row.kinds for row in found] == [("shape",), ()]
    assert found[0].values == {"control": [900, 600], "target": [2000, 2000]}


def test_what_cannot_be_read_and_empty_captions(tmp_path: Path):
    for name, number in (("source/1.png", 1), ("target/1.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(plain(number * 900))
    found = look(
        tmp_path,
        ("gone.png", "target/1.png"),
        ("../outside.png", "target/1.png"),
        ("source/1.png", "target/1.png"),
        ("target/1.png", "source/1.png"),
        ("https://192.0.2.1/a.png", "target/1.png"),
        (None, "target/1.png"),
        prompts=["words", "", "  ", "words", None, "words"],
    )
    expected = [("unreadable",), ("unreadable", "emptyCaption"), ("emptyCaption",), ("swapped",), ("emptyCaption",), ()]
    assert [row.kinds for row in found] == expected
    assert "gone.png" in found[0].values["why"]
    assert found[0].values["column"] == "before"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0rubbish", b"text"])
def test_damaged_pictures_are_named(tmp_path: Path, data: bytes):
    (row,) = look(tmp_path, (data, plain(3)))
    assert row.kinds == ("unreadable",)


def test_several_controls_are_compared_each(tmp_path: Path):
    pictures = [encoded(shape_picture(seed)) for seed in (1, 2, 3)]
    path = write(
        tmp_path, {"prompt": ["a", "b"], "one": pictures[:2], "two": [None, pictures[2]], "after": pictures[1:]}
    )
    found = list(scan_rows(path, Columns("prompt", ("one", "two"), "after"), tmp_path))
    assert [row.kinds for row in found] == [(), ("same",)]
