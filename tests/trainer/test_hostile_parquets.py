"""Whatever a parquet claims or repeats, it is refused or read in bounded memory."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import footer, pages, parquet_rows
from trainer.data import parquet as parquet_files
from trainer.data.columns import first_look, guess_columns
from trainer.data.row_blocks import RowBlocks
from trainer.data.thrift import NotThrift, count_structs, read_struct
from trainer.errors import BadInput

from .edits import assert_rows_belong_together, number_of, opened, png
from .hostile_parquets import HOSTILE, MEGABYTE, repeated, write
from .peak import peak_memory

GIGABYTE = 2**30


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_parquet_is_refused_in_bounded_memory(what: str, tmp_path: Path) -> None:
    make, says = HOSTILE[what]
    path = tmp_path / "edits.parquet"
    make(path)
    assert path.stat().st_size < 10 * MEGABYTE
    with peak_memory() as peak:
        began = time.monotonic()
        try:
            assert set(first_look(path)[0]) == {"prompt", "before", "after"}
        except BadInput as error:
            assert re.search(says, str(error))
        assert time.monotonic() - began < 10
        with pytest.raises(BadInput, match=f"(?s){says}") as caught:
            opened(path)
        assert len(str(caught.value)) < 5000
    assert peak[0] < GIGABYTE


def test_one_picture_in_twenty_thousand_rows(tmp_path: Path) -> None:
    """8.7 GB of control images, which the file holds once: a legitimate dataset."""
    path, rows = tmp_path / "edits.parquet", 20_000
    picture = png(5, (400, 300)) + np.random.default_rng(0).bytes(434_000)  # bytes after the end are ignored
    captions = [f"edit {number}" for number in range(rows)]
    parts = [repeated(picture, rows), repeated("a.png", rows)]
    for before in (parts[0], pa.StructArray.from_arrays(parts, ["bytes", "path"])):
        write(path, before, rows, captions)
        with peak_memory() as peak:
            assert guess_columns(path)["control_image_column"] == "before"
            dataset = opened(path)
            assert len(dataset) == rows
            for row in (rows - 1, 7, rows // 2):
                assert dataset[row].caption == f"edit {row}"
                assert number_of(dataset.fetch(dataset[row].controls[0])) == 5
        assert peak[0] < GIGABYTE


def columns_of(path: Path) -> list[tuple]:
    blocks = RowBlocks(path, ["text", "struct", "data"])
    return [tuple(cells[row] for cells in block.columns) for block in blocks for row in range(block.rows)]


def test_dictionaries_hold_what_plain_values_do(tmp_path: Path) -> None:
    """Also with nulls, and where a column goes on without its dictionary when that is full."""
    random = np.random.default_rng(1)
    pick = random.integers(0, 40, 3000).tolist()
    values = [None if number == 7 else f"wört {number}" for number in pick]
    data = [None if number == 9 else bytes([number]) * (number * 10) for number in pick]
    unique = [random.bytes(200) for _ in pick]
    struct_ = [
        None if number == 3 else {"bytes": one, "path": two}
        for number, one, two in zip(pick, unique, values, strict=True)
    ]
    table = pa.table({"text": values, "struct": struct_, "data": data})
    results = []
    for options in (
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 5000, "data_page_size": 2000},
        {"data_page_version": "2.0", "compression": "zstd"},
    ):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=1700, **options)
        results.append(columns_of(tmp_path / "a.parquet"))
    expected = [
        (text, one if (one := row and row["bytes"]) is not None else row and row["path"], two)
        for text, row, two in zip(values, struct_, data, strict=True)
    ]
    assert all(result == expected for result in results)


def test_a_large_dictionary_is_read_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer makes of many different pictures: a dictionary too large to be kept whole."""
    monkeypatch.setattr(pages, "MAX_DICTIONARY_BYTES", 2000)
    monkeypatch.setattr(pages, "MAX_BATCH_BYTES", 20_000)
    monkeypatch.setattr(parquet_rows, "BLOCK_BYTES", 1000)
    columns = {"prompt": [f"edit {number}" for number in range(60)], "before": [png(number) for number in range(60)]}
    columns["after"] = [png(number + 1000) for number in range(60)]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert_rows_belong_together(opened(tmp_path / "a.parquet"), list(range(60)))
    assert max(block.rows for block in RowBlocks(tmp_path / "a.parquet", ["before"])) < 20


def test_pages_that_are_large_in_the_file_too_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 1000)
    random = np.random.default_rng(1)
    data = [random.bytes(5000) for _ in range(20)]
    pq.write_table(pa.table({"data": data}), tmp_path / "a.parquet")
    assert [cell for block in RowBlocks(tmp_path / "a.parquet", ["data"]) for cell in [block.columns[0][0]]]
    pq.write_table(pa.table({"data": [bytes(5000)] * 20}), tmp_path / "a.parquet", use_dictionary=False)
    with pytest.raises(BadInput, match=r"row group 0: its pages take 0 MB .* smaller row groups"):
        next(iter(RowBlocks(tmp_path / "a.parquet", ["data"])))


def test_a_text_column_that_cannot_be_read_is_no_reason_to_refuse_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([b"\xff\xfe"] * 3).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"odd": texts, "prompt": ["a b"] * 3, "path": ["x.png"] * 3}), path, compression="none")
    data = path.read_bytes()
    assert first_look(path)[0] == {"odd": "either", "prompt": "text", "path": "image"}
    at = data.index(b"\xff\xfe") - 30
    path.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    assert first_look(path)[0] == {"odd": "either", "prompt": "text", "path": "image"}


@pytest.mark.slow
def test_no_byte_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    """pyarrow's metadata of column chunks does, where a damaged footer has a list of another length."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a b", None], "data": [b"x", b"y"]}), path, store_schema=False)
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    for at in range(len(data) - 8 - length, len(data)):
        for change in (0x01, 0x10):
            path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
            with suppress(BadInput):
                if first_look(path)[0].get("text") in ("text", "either"):
                    list(RowBlocks(path, ["text"]))


def numbers_in(fields: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Places of the numbers in a struct of Thrift: the fields, and the indices in lists, that lead to them."""
    if isinstance(fields, int):
        yield place
    parts = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    for index, part in parts:
        yield from numbers_in(part, (*place, index))


@pytest.mark.parametrize("module", [pages, footer], ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("foreign", [{1: 0}, [b""]], ids=["struct", "list"])
def test_a_number_that_is_none_is_refused(
    foreign: object, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "edits.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "b"]}), path)
    found: set[tuple[int, ...]] = set()
    damaged_place: tuple[int, ...] = ()

    def damaged(data: bytes, at: int = 0) -> tuple[dict, int]:
        header, end = read_struct(data, at)
        places = set(numbers_in(header))
        found.update(places)
        if damaged_place in places:
            part: Any = header
            for index in damaged_place[:-1]:
                part = part[index]
            part[damaged_place[-1]] = foreign
        return header, end

    monkeypatch.setattr(module, "read_struct", damaged)
    RowBlocks(path, ["prompt"]).block(0)
    refused = 0
    for place in sorted(found):
        damaged_place = place
        try:
            RowBlocks(path, ["prompt"]).block(0)
        except BadInput:
            refused += 1
    assert refused >= 4, "sizes, counts and offsets"


def test_a_footer_that_asks_for_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"a": ["x"], "b": ["y"]})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(30):
            writer.write_table(table)
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    counts = count_structs(data[-8 - length : -8])
    assert counts[parquet_files.CHUNK_DEPTH] >= 60
    monkeypatch.setattr(parquet_files, "UNWEIGHED_FOOTER", 100)
    assert guess_columns(path) == {}
    monkeypatch.setattr(parquet_files, "MAX_CHUNKS", 50)
    with pytest.raises(BadInput, match=r"its footer describes .* write it again with larger row groups"):
        guess_columns(path)
    monkeypatch.setattr(parquet_files, "MAX_FOOTER", 200)
    with pytest.raises(BadInput, match=r"its footer of [0-9,]+ bytes is too large"):
        guess_columns(path)


DAMAGED = [b"", b"\x15", b"\x15\xff\xff", b"\x1c" * 50 + bytes(50), b"\x15" + b"\xff" * 11 + b"\0"]


@pytest.mark.parametrize("data", [*DAMAGED, b"\x1b\0", b"\x18\x7f", b"\x19\xff\xff"], ids=repr)
def test_damaged_headers(data: bytes) -> None:
    for read in (read_struct, count_structs):
        with pytest.raises((NotThrift, IndexError)):
            read(data)
