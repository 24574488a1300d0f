"""Captions of packed pairs in tables: as spreadsheets write them, and in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.packing import captions

from .packed_sets import BOTH, in_folder, in_zip, packed, pair, refused


@BOTH
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", 'file_name,text\nb.png,"two, too"\ntarget/a.png,one\n'),
        ("metadata.jsonl", '{"file_name": "a", "caption": "one"}\n\n{"image": "b.jpg", "prompt": "two, too"}\n'),
    ],
)
def test_captions_in_a_table(put: Callable, name: str, table: str, tmp_path: Path) -> None:
    files = pair("a", 1) | pair("b", 2)
    expected = [(1, 1001, "one"), (2, 1002, "two, too")]
    assert packed(put(tmp_path, files | {name: table.encode()})) == expected
    (tmp_path / f"my {name}").write_text(table)
    (tmp_path / "other").mkdir()
    assert packed(put(tmp_path / "other", files), captions=str(tmp_path / f"my {name}")) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets(delimiter: str, tmp_path: Path) -> None:
    lines = [["File_Name ", "Caption"], ["a.png", '"one, two; three"'], ["", ""], ["b.png", "two"]]
    table = "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines)
    files = pair("a", 1) | pair("b", 2) | {"captions.csv": table.encode()}
    assert packed(in_zip(tmp_path, files)) == [(1, 1001, "one, two; three"), (2, 1002, "two")]


def test_an_empty_caption_in_a_table_or_a_text_is_none(tmp_path: Path) -> None:
    files = pair("a", 1) | pair("b", 2) | {"metadata.csv": b"file_name,caption\na, \n", "target/b.txt": b" \n"}
    source = in_folder(tmp_path, files)
    refused(source, "target/a.png: has no caption", "target/b.png: has no caption")
    assert packed(source, caption="all") == [(1, 1001, "all"), (2, 1002, "all")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "word"),
    [
        (b"file_name,caption\n" + b"q,x\n" * (3 * 2**20), 'line 2: there is no pair named "q"'),
        (b"file_name,caption" + b",x" * 2**20 + b"\n" + b"a,x\n" * 2**17 + b"q,x\n", 'no pair named "q"'),
    ],
    ids=["many faults", "many columns"],
)  # fmt: skip
def test_a_large_table_takes_no_more_than_its_size(table: bytes, word: str, tmp_path: Path) -> None:
    source = in_zip(tmp_path, pair("a", 1) | {"metadata.csv": table})
    start = time.monotonic()
    tracemalloc.start()
    refused(source, word)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20 and time.monotonic() - start < 20


def test_captions_that_are_gigabytes_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MAX_TEXTS_BYTES", 1000)
    files = {name: data for n in range(9) for name, data in pair(f"{n}", n).items()}
    texts = {f"target/{n}.txt": b"x" * 400 for n in range(9)}
    refused(in_zip(tmp_path, files | texts), "target/2.txt: the captions are larger than", caption="rest")
