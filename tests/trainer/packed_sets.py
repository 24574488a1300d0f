"""Sets of pictures in folders and zips, and what comes of packing them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trainer.data.images import decode_image
from trainer.errors import BadInput
from trainer.events import drain
from trainer.packing.pack import PackOptions, pack

from .edits import number_of, png

Files = dict[str, bytes]


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    decode_image(png(number)).save(stream, "JPEG", quality=100, subsampling=0)
    return stream.getvalue()


def in_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "set"


def in_zip(folder: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / "set.zip"


BOTH = pytest.mark.parametrize("put", [in_folder, in_zip])


def packed(source: Path, **options: object) -> list[tuple[object, ...]]:
    """Rows of the parquet: the number that each picture shows, and the caption."""
    out = source.parent / "out" / "edits.parquet"
    result = drain(pack(source, out, PackOptions(**options)))
    rows = pq.read_table(out).to_pylist()
    assert result.rows == len(rows)
    return [tuple(number_of(cell) if isinstance(cell, bytes) else cell for cell in row.values()) for row in rows]


def refused(source: Path, *words: str, **options: object) -> None:
    """The message says all of these, and nothing is written."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(BadInput) as error:
        packed(source, **options)
    for word in words:
        assert word in str(error.value)
    assert sorted(source.parent.rglob("*")) == before


def pair(name: str, number: int, **more: bytes) -> Files:
    return {f"control/{name}.png": png(number), f"target/{name}.png": png(number + 1000)}
