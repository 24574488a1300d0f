"""Datasets to which examples are added one by one: a folder with a parquet of paths, and the pictures beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from PIL import Image

from ..config.columns import Columns
from ..data.parquet import read_schema
from ..data.row_blocks import RowBlocks
from ..data.row_edits import edits_kept
from ..errors import BadInput, RunFailed, shorten
from ..files import atomic_write
from .captions import text_fault
from .pack import CAPTION, column_names
from .pairs import TARGET

PARQUET, PICTURES = "dataset.parquet", "images"
"""Names in the folder of such a dataset."""

LOCK = ".dataset.lock"
LOCK_SECONDS = 60.0
"""Seconds that another program may take to add its examples; a judgement."""

MAX_EXAMPLES = 1_000_000
"""Examples of a dataset, which is written again for each that is added; a judgement."""

MAX_CONTROLS = 9
"""Control images of an example, as many as a zip may have."""


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures and caption of one row."""

    controls: tuple[Image.Image, ...]
    target: Image.Image
    caption: str


@dataclass(frozen=True, slots=True)
class Added:
    """A dataset after examples were added."""

    parquet: Path
    columns: Columns
    rows: int
    new: int
    """Examples that were not in it before."""


def add_examples(folder: Path, examples: Sequence[Example]) -> Added:
    """Append examples to the dataset in a folder, which is made if there is none; those that it has already are left
    out. The rows that are there keep their places.

    Pictures are saved as PNG under names made of their pixels. The parquet is replaced in one step, and programs that
    add at the same time wait for each other. Raises BadInput for a dataset of another kind and a text that cannot be a
    caption, and RunFailed when it cannot be written.
    """
    parquet = folder / PARQUET
    for example in examples:
        if fault := text_fault(example.caption):
            raise BadInput(f'caption: "{shorten(example.caption, 40)}" {fault}.')
    with _locked(folder):
        rows = _read(parquet)
        known = set(rows)
        before = len(known)
        for example in examples:
            row = (
                *(_save(folder, picture) for picture in example.controls),
                *[None] * (MAX_CONTROLS - len(example.controls)),
                _save(folder, example.target),
                example.caption,
            )
            if row not in known:
                known.add(row)
                rows.append(row)
        most = max((sum(cell is not None for cell in row[:MAX_CONTROLS]) for row in rows), default=1)
        controls = tuple(column_names(max(most, 1)))
        if len(known) > before:
            _write(parquet, rows, controls)
    return Added(parquet, Columns(CAPTION, controls, TARGET), len(rows), len(known) - before)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Context in which no other program adds to the dataset."""
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunFailed(f"{folder} is in use: another program adds to it. Try again.") from None
    except OSError as error:
        raise RunFailed(f"Cannot write to {folder}: {error.strerror or error}.") from None
    try:
        yield
    finally:
        lock.release()


Row = tuple[str | None, ...]
"""Paths of MAX_CONTROLS control images and of the target, and the caption."""


def _read(parquet: Path) -> list[Row]:
    """Rows of the dataset; none where there is no such file. Raises BadInput for a file of another kind."""
    if not parquet.exists():
        return []
    schema = read_schema(parquet)
    names = schema.names
    controls = list(column_names(min(len(names) - 2, MAX_CONTROLS)))
    if names != [*controls, TARGET, CAPTION] or not all(map(pa.types.is_string, schema.types)):
        raise BadInput(
            f"{parquet} was not made by adding examples, and is left as it is; give the dataset another name."
        )
    blocks = RowBlocks(parquet, names)
    if blocks.rows > MAX_EXAMPLES:
        blocks.close()
        raise BadInput(f"{parquet} has {blocks.rows:,} examples; at most {MAX_EXAMPLES:,} can be added to.")
    absent = [None] * (MAX_CONTROLS - len(controls))
    texts: dict[Any, Any] = {}  # each of them once, as a small file may repeat a large one
    with closing(blocks):
        rows = [
            [texts.setdefault(cell, cell) for cell in (cells[index] for cells in block.columns)]
            for block in blocks
            for index in range(block.rows)
        ]
    return [(*row[: len(controls)], *absent, *row[len(controls) :]) for row in rows]


def _write(parquet: Path, rows: Sequence[Row], controls: Sequence[str]) -> None:
    cells = list(zip(*rows, strict=True))
    columns = dict(zip([*controls, TARGET, CAPTION], [*cells[: len(controls)], *cells[MAX_CONTROLS:]], strict=True))
    schema = pa.schema([(name, pa.string()) for name in columns])
    with edits_kept(parquet), atomic_write(parquet) as temporary:
        pq.write_table(pa.table({name: list(column) for name, column in columns.items()}, schema), temporary)


def _save(folder: Path, picture: Image.Image) -> str:
    """Save a picture unless it is there, and return its path relative to the folder."""
    picture = picture.convert("RGB")
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:32]
    path = folder / PICTURES / f"{digest}.png"
    if not path.is_file():
        with atomic_write(path) as temporary:
            picture.save(temporary, "PNG")
    return path.relative_to(folder).as_posix()
