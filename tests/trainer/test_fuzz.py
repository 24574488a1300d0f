"""Mutated files of every kind that strangers give: no traceback, no hang, no gigabyte."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from . import fuzz

ROUNDS = 200


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    assert fuzz.run(tmp_path, 7, range(ROUNDS), counts) == []
    assert set(counts) >= {f"{kind} refused" for kind in fuzz.READERS}
    assert counts.total() == ROUNDS * len(fuzz.READERS)


@pytest.mark.parametrize("kind", fuzz.READERS)
def test_the_files_that_are_mutated_are_good(kind: str, tmp_path: Path) -> None:
    path, results = tmp_path / f"case.{kind}", []
    for data in fuzz.seeds(tmp_path)[kind]:
        path.write_bytes(data)
        results.append(fuzz.check(kind, path))
    assert results.count("read") >= len(results) / 2
