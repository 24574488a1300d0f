"""Small datasets for tests, whose images name their rows."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainer.config.columns import Columns
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.images import decode_image
from trainer.events import drain

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
    columns = Columns.from_fields({field: options.pop(field, name) for field, name in NAMES.items()})
    return drain(open_dataset(path, columns, **options))


def assert_rows_belong_together(dataset: EditDataset, numbers: list[int]) -> None:
    """Every access gives caption, control and target of the same row."""
    assert len(dataset) == len(numbers)
    for place, (row, number) in enumerate(zip(dataset, numbers, strict=True)):
        assert row == dataset[place] == dataset.read_row(number)
        assert row.row == number
        assert row.caption == f"edit {number}"
        (control,) = row.controls
        assert number_of(dataset.fetch(control)) == number
        assert number_of(dataset.fetch(row.target)) == number + 1000
