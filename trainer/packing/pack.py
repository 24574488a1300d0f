"""Packing of pictures into a parquet with the columns control, control_2 and so on, target and caption."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.image_refs import image_ref
from ..data.images import EncodedImage
from ..data.pages import BLOCK_BYTES
from ..data.parquet import read_schema
from ..data.row_edits import edits_file
from ..errors import BadImage, BadInput, shorten
from ..events import Progress
from ..files import atomic_write
from ..paths import path_kind, typed_path
from .captions import MAX_TABLE_BYTES, Captions, tables_beside, text_fault
from .folder import FolderSource, PictureSource
from .pairs import CONTROL, TARGET, PicturePair, find_roles
from .zips import ZipSource

Images = Literal["embedded", "paths"]
"""Content of the parquet: the pictures themselves, or their paths relative to it."""

LISTED_FAULTS = 20
"""Faults that a message lists; a judgement: enough to see a pattern, few enough to read."""

MAX_GROUP_ROWS = 10_000
"""Rows of a row group of paths; a judgement: a megabyte."""

DECODERS = 4
"""Threads that decode the pictures of a pair; a judgement: few pairs have more."""

CAPTION = "caption"

MARK = b"edit_trainer.packed"
"""Key in the metadata of a parquet that was packed."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Choices in the packing of pictures."""

    controls: tuple[str, ...] = ()
    """Folders of the control images, or ends of their names; empty: the usual ones."""
    target: str = ""
    """Folder of the targets, or the end of their names."""
    captions: str = ""
    """Table with captions; empty: one that lies beside the pictures, if there is one."""
    caption: str = ""
    """Caption of every pair that has none of its own."""
    images: Images = "embedded"


@dataclass(frozen=True, slots=True)
class Packed:
    """A parquet that was written."""

    path: Path
    rows: int
    controls: tuple[str, ...]
    """Columns of control images."""


def pack(
    source: Path, out: Path, options: PackOptions | None = None, replace: Literal["any", "packed"] = "any"
) -> Generator[Progress, None, Packed]:
    """Pack a folder or a zip of pictures. A generator that yields Progress and returns what was written.

    Every picture is decoded first, and nothing is written unless all are good and have their partners. `replace` says
    whether `out` may be any file before, or only one that was packed; one with the same content keeps its date. Raises
    BadInput naming the faults, and RunFailed when the parquet cannot be written.
    """
    options = options or PackOptions()
    if out.suffix.lower() != ".parquet" or path_kind(out) == "folder":
        raise BadInput(f"{out}: name a file that ends in .parquet.")
    if replace == "packed" and out.exists() and MARK not in (read_schema(out).metadata or {}):
        raise BadInput(f"{out} exists and was not made of pictures, so it is left as it is. Give another name.")
    with closing(open_source(source)) as opened:
        pairs, captions = _examples(opened, options)
        cells = _paths(opened, out, pairs) if options.images == "paths" else None
        yield from _check_pictures(opened, pairs)
        controls = tuple(column_names(len(pairs[0].controls)))
        with atomic_write(out) as temporary:
            rows = _rows_of_paths(cells, captions) if cells else _rows_of_bytes(opened, pairs, captions)
            yield from _write(temporary, rows, controls, len(pairs), options.images)
            if out.is_file():
                _check_replaced(out, temporary)
    return Packed(out, len(pairs), controls)


def _check_replaced(out: Path, new: Path) -> None:
    """Keep the date of a file that is replaced by the same content. Raises BadInput for other content where edits of
    its rows lie beside it, as they would be of other rows then."""
    edits = edits_file(out)
    if filecmp.cmp(new, out, shallow=False):
        shutil.copystat(out, new)
    elif edits.exists():
        raise BadInput(
            f"{out} would get other rows, and {edits.name} beside it has edits of those that are there. Give another "
            "name, or delete the edits."
        )


def column_names(controls: int) -> Iterator[str]:
    """Yield the names of so many columns of control images."""
    yield from (CONTROL if number == 1 else f"{CONTROL}_{number}" for number in range(1, controls + 1))


def open_source(path: Path) -> PictureSource:
    """List the files of a folder or a zip. Raises BadInput."""
    kind = path_kind(path)
    if kind == "folder":
        return FolderSource(path)
    if kind == "file":
        return ZipSource(path)
    raise BadInput(f"{path} does not exist; name a folder or a zip of pictures.")


def _examples(source: PictureSource, options: PackOptions) -> tuple[list[PicturePair], list[str]]:
    """Pairs and their captions. Raises BadInput naming what does not fit."""
    if fault := text_fault(options.caption):
        raise BadInput(f'caption: "{shorten(options.caption, 40)}" {fault}.')
    roles = find_roles(source.names, options.controls, options.target)
    pairs = roles.pairs()
    captions = Captions()
    captions.add_texts(source, roles)
    for name, data in _tables(source, options, list(tables_beside(source, roles))):
        captions.add_table(name, data, roles, pairs)
    found = captions.of(pairs, options.caption.strip())
    faults = [*roles.faults, *captions.faults]
    _raise_faults(source, faults if faults or pairs else ["it holds no pairs of pictures"])
    return pairs, found


def _tables(source: PictureSource, options: PackOptions, beside: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the named table, or else those beside the pictures."""
    if not options.captions:
        yield from ((name, source.named(name, MAX_TABLE_BYTES)) for name in beside)
        return
    path = typed_path(options.captions)
    if options.captions in source.names:
        yield options.captions, source.named(options.captions, MAX_TABLE_BYTES)
    elif path_kind(path) == "file":
        with path.open("rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
        if len(data) > MAX_TABLE_BYTES:
            raise BadInput(f"{path} is larger than {MAX_TABLE_BYTES >> 20} MB.")
        yield path.name, data
    else:
        raise BadInput(f"{shorten(options.captions)}: there is no such table of captions, a CSV or JSON lines.")


def _raise_faults(source: PictureSource, faults: Sequence[str]) -> None:
    if faults:
        more = [f"and {len(faults) - LISTED_FAULTS} more"] if len(faults) > LISTED_FAULTS else []
        lines = "".join(f"\n  - {fault}" for fault in [*faults[:LISTED_FAULTS], *more])
        raise BadInput(f"{source.path} cannot be packed:{lines}")


def _check_pictures(source: PictureSource, pairs: Sequence[PicturePair]) -> Iterator[Progress]:
    """Decode every picture. Raises BadInput naming those that cannot be."""
    faults: list[str] = []
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="pack") as pool:
        for done, pair in enumerate(pairs, 1):
            for name, fault in zip(
                names := (*pair.controls, pair.target), pool.map(lambda name: _fault(source, name), names), strict=True
            ):
                if fault:
                    faults.append(f"{shorten(name)}: {fault}")
            yield Progress(phase="checking", done=done, total=len(pairs), note="pictures")
    _raise_faults(source, faults)


def _fault(source: PictureSource, name: str) -> str | None:
    try:
        EncodedImage(source.read(name)).digest()
    except BadInput as error:
        return str(error)
    return None


def _paths(source: PictureSource, out: Path, pairs: Sequence[PicturePair]) -> list[list[str]]:
    """Paths of the pictures of each pair relative to the parquet. Raises BadInput for those that it cannot name."""
    if not isinstance(source, FolderSource):
        raise BadInput(f"{source.path}: the pictures of a zip have no paths; embed them in the parquet.")
    folder, start = out.parent.resolve(), source.path.resolve()
    if not start.is_relative_to(folder):
        raise BadInput(
            f"{out}: paths of pictures start at the parquet's folder, and {start} is not in it. Put the parquet into "
            f"{start} or a folder above it, or embed the pictures."
        )
    faults: list[str] = []
    cells = [
        [_named(name, (start / name).relative_to(folder).as_posix(), faults) for name in (*pair.controls, pair.target)]
        for pair in pairs
    ]
    _raise_faults(source, faults)
    return cells


def _named(name: str, path: str, faults: list[str]) -> str:
    """Return the path as a dataset reads it, and add what it would misread to the faults."""
    try:
        path.encode()
        if image_ref(path).value == path:
            return path
        faults.append(f"{shorten(name)}: a parquet cannot have a path of this name; rename it, or embed the pictures")
    except UnicodeError:
        faults.append(f"{shorten(name)}: its name is not Unicode; rename it, or embed the pictures")
    except BadImage as error:
        faults.append(str(error))
    return path


def _rows_of_paths(cells: Sequence[Sequence[str]], captions: Sequence[str]) -> Iterator[tuple[list[list], int]]:
    """Yield row groups, as columns, with the number of rows that they reach to."""
    for first in range(0, len(cells), MAX_GROUP_ROWS):
        end = min(first + MAX_GROUP_ROWS, len(cells))
        yield [*map(list, zip(*cells[first:end], strict=True)), list(captions[first:end])], end


def _rows_of_bytes(
    source: PictureSource, pairs: Sequence[PicturePair], captions: Sequence[str]
) -> Iterator[tuple[list[list], int]]:
    """Yield row groups of about BLOCK_BYTES, as `_rows_of_paths` does."""
    rows: list[list[bytes | str]] = []
    size = 0
    for end, (pair, caption) in enumerate(zip(pairs, captions, strict=True), 1):
        data = [source.named(name) for name in (*pair.controls, pair.target)]
        rows.append([*data, caption])
        size += sum(map(len, data))
        if size >= BLOCK_BYTES or end == len(pairs):
            yield list(map(list, zip(*rows, strict=True))), end
            rows, size = [], 0


def _write(
    path: Path, groups: Iterator[tuple[list[list], int]], controls: Sequence[str], total: int, images: Images
) -> Iterator[Progress]:
    kind = pa.binary() if images == "embedded" else pa.string()
    columns = [*controls, TARGET]
    schema = pa.schema([*((name, kind) for name in columns), (CAPTION, pa.string())], {MARK: b"1"})
    # Pictures are compressed already, and a page of many of them would be large.
    options: dict[str, Any] = (
        {"compression": {**dict.fromkeys(columns, "NONE"), CAPTION: "ZSTD"}, "use_dictionary": [CAPTION]}
        if images == "embedded"
        else {"compression": "ZSTD", "use_dictionary": False}
    )
    with pq.ParquetWriter(path, schema, write_statistics=False, write_batch_size=8, **options) as writer:
        for cells, end in groups:
            arrays = [pa.array(column, field.type) for column, field in zip(cells, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(cells[0]))
            yield Progress(phase="saving", done=end, total=total, note="pairs")
