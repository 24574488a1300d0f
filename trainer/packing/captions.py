"""Captions of pairs: from a text beside the pictures, from a table, or one for all that have none of their own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from ..config.validation import decode_json
from ..data.cell_checks import MAX_TEXT_BYTES
from ..errors import BadInput, shorten
from .folder import PictureSource
from .pairs import PicturePair, Roles, bare_key

TABLES = ("metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl")
"""Tables that are looked for beside the pictures."""

MAX_TABLE_BYTES = 64 * 2**20
"""Largest table, in bytes; a judgement: a hundred thousand long captions."""

NAME_COLUMNS = ("file_name", "filename", "file", "name", "image", "target", "stem", "key", "id")
"""Columns that say which pair a line of a table is about; the first that is there is taken."""

CAPTION_COLUMNS = ("caption", "prompt", "instruction", "text")
"""Columns that hold its caption; the first that is there is taken."""


class Captions:
    """Captions by the keys of pairs, and what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._found: dict[str, tuple[str, str]] = {}
        """Caption and where it stands, by key."""

    def add_texts(self, source: PictureSource, roles: Roles) -> None:
        """Read the texts beside the pictures."""
        for key, names in roles.texts.items():
            for name in names:
                try:
                    self._add(key, _text(source.read(name, MAX_TEXT_BYTES)), name)
                except BadInput as error:
                    self.faults.append(f"{shorten(name)}: {error}")

    def add_table(self, name: str, data: bytes, roles: Roles, pairs: Sequence[PicturePair]) -> None:
        """Read a table, a CSV with a header or JSON lines: a column with names of pictures, and one with captions."""
        keys = {pair.key for pair in pairs}
        try:
            for line, row in _rows(name, data):
                picture, caption = (_value(row, columns) for columns in (NAME_COLUMNS, CAPTION_COLUMNS))
                if picture is None or caption is None:
                    missing, columns = ("name", NAME_COLUMNS) if picture is None else ("caption", CAPTION_COLUMNS)
                    raise BadInput(f"line {line} has no {missing}; its column is one of {', '.join(columns)}")
                if (key := bare_key(picture, roles)) in keys:
                    self._add(key, caption, f"{shorten(name)}, line {line}")
                else:
                    self.faults.append(f'{shorten(name)}, line {line}: there is no pair named "{shorten(picture)}"')
        except BadInput as error:
            self.faults.append(f"{shorten(name)}: {error}")

    def of(self, pairs: Sequence[PicturePair], default: str) -> list[str]:
        """Return the caption of each pair; those of its own win over `default`. Without either it is a fault."""
        captions = []
        for pair in pairs:
            caption, _ = self._found.get(pair.key, (default, ""))
            if pair.key not in self._found and not default:
                self.faults.append(
                    f"{shorten(pair.target)}: has no caption; put it into {shorten(PurePosixPath(pair.key).name)}.txt "
                    "beside it, or give one for all"
                )
            captions.append(caption)
        return captions

    def _add(self, key: str, caption: str, where: str) -> None:
        known, first = self._found.setdefault(key, (caption, where))
        if known != caption:
            self.faults.append(f"{shorten(where)} and {shorten(first)} have different captions for one pair")


def tables_beside(source: PictureSource, roles: Roles) -> Iterator[str]:
    """Yield the names of tables that lie at the top of a source, or beside the targets."""
    for name in source.names:
        path = PurePosixPath(name)
        if path.name.lower() in TABLES and (len(path.parts) <= 2 or path.parent.name in roles.names):
            yield name


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadInput("is not UTF-8 text; save it as UTF-8") from None


def _rows(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each line. Raises BadInput."""
    text = _text(data)
    if PurePosixPath(name).suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, {(field or "").strip().lower(): value for field, value in row.items()}
        except csv.Error as error:
            raise BadInput(f"line {reader.line_num} is not CSV ({error})") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = decode_json(line, f"line {number}")
        if not isinstance(row, dict):
            raise BadInput(f"line {number} is not a JSON object")
        yield number, {str(field).lower(): value for field, value in row.items()}


def _value(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    """Text of the first of some columns that a line has."""
    for column in columns:
        if isinstance(value := row.get(column), str):
            if len(value.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
                raise BadInput(f'the {column} "{shorten(value, 40)}" is longer than {MAX_TEXT_BYTES:,} bytes')
            return value.strip()
    return None
