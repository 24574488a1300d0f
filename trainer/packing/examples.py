"""Datasets to which examples are added one by one: a folder with a parquet of paths, and the pictures beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from PIL import Image

from ..config.columns import Columns
from ..data.parquet import open_parquet
from ..data.row_edits import edits_kept
from ..errors import BadInput, RunFailed
from ..files import atomic_write
from .pack import CAPTION, column_names
from .pairs import TARGET

PARQUET, PICTURES = "dataset.parquet", "images"
"""Names in the folder of such a dataset."""

LOCK = ".dataset.lock"
LOCK_SECONDS = 60.0
"""Seconds that another program may take to add its examples; a judgement."""

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
    add at the same time wait for each other. Raises BadInput for a dataset of another kind, and RunFailed when it
    cannot be written.
    """
    parquet = folder / PARQUET
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
    with open_parquet(parquet) as file:
        names = file.schema_arrow.names
        controls = list(column_names(len(names) - 2))
        if names != [*controls, TARGET, CAPTION] or any(
            not pa.types.is_string(kind) for kind in file.schema_arrow.types
        ):
            raise BadInput(
                f"{parquet} was not made by adding examples, and is left as it is; give the dataset another name."
            )
        try:
            table = file.read()
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{parquet} is damaged: {error}") from None
    columns = [table.column(name).to_pylist() for name in names]
    absent = [[None] * table.num_rows] * (MAX_CONTROLS - len(controls))
    return list(zip(*columns[: len(controls)], *absent, *columns[len(controls) :], strict=True))


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
