"""Captions of pairs: from a text beside the pictures, from a table, or one for all that have none of their own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

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

LISTED_COLUMNS = 10
"""Columns of a table that a message lists; a judgement."""

DELIMITERS = ",;\t"
"""Characters between the columns of a CSV: spreadsheets write semicolons where a comma is in decimal numbers."""

MAX_FAULTS = 100
"""Faults of a table after which it is not read on; a judgement: more than a message lists."""

MAX_TEXTS_BYTES = 64 * 2**20
"""Bytes of all captions together, which are in memory; a judgement, as for a table."""


class Captions:
    """Captions by the keys of pairs, and what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._found: dict[str, tuple[str, str]] = {}
        """Caption and where it stands, by key."""
        self._bytes = 0

    def add_texts(self, source: PictureSource, roles: Roles) -> None:
        """Read the texts beside the pictures."""
        for key, names in roles.texts.items():
            for name in names:
                try:
                    self._add(key, _text(source.read(name, MAX_TEXT_BYTES)), name)
                except BadInput as error:
                    self.faults.append(f"{shorten(name)}: {error}")
                if self._bytes > MAX_TEXTS_BYTES:
                    return

    def add_table(self, name: str, data: bytes, roles: Roles, pairs: Sequence[PicturePair]) -> None:
        """Read a table, a CSV with a header or JSON lines: a column with names of pictures, and one with captions.
        After MAX_FAULTS faults it is not read on."""
        keys = {pair.key for pair in pairs}
        first = len(self.faults)
        try:
            for line, picture, caption in _rows(name, _text(data)):
                if (key := bare_key(picture, roles)) in keys:
                    self._add(key, caption, f"{shorten(name)}, line {line}")
                else:
                    self.faults.append(f'{shorten(name)}, line {line}: there is no pair named "{shorten(picture)}"')
                if len(self.faults) >= first + MAX_FAULTS:
                    break
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
        """Add a caption; one that is empty is none."""
        if not caption:
            return
        self._bytes += len(caption.encode())
        if self._bytes > MAX_TEXTS_BYTES:
            raise BadInput(f"the captions are larger than {MAX_TEXTS_BYTES >> 20} MB together; pack fewer pictures")
        known, first = self._found.setdefault(key, (caption, where))
        if known != caption:
            self.faults.append(f"{shorten(where)} and {shorten(first)} have different captions for one pair")


def tables_beside(source: PictureSource, roles: Roles) -> Iterator[str]:
    """Yield the names of tables that lie at the top of a source, or beside the targets."""
    for name in source.names:
        path = PurePosixPath(name)
        if path.name.lower() in TABLES and (len(path.parts) <= 2 or path.parent.name in roles.names):
            yield name


def text_fault(caption: str) -> str | None:
    """Say why a text cannot be a caption, in words that follow it; None where it can."""
    if "\0" in caption:
        return "holds a zero byte"
    too_long = len(caption.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES
    return f"is longer than {MAX_TEXT_BYTES:,} bytes" if too_long else None


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadInput("is not UTF-8 text; save it as UTF-8") from None
    if "\0" in text:
        raise BadInput("holds zero bytes, so that it is not UTF-8 text; save it as UTF-8")
    return text


def _rows(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each line, the name of a picture and the caption in it. Raises BadInput."""
    for line, picture, caption in (_csv_rows if name.lower().endswith(".csv") else _json_rows)(text):
        if fault := text_fault(caption):
            raise BadInput(f'line {line}: the caption "{shorten(caption, 40)}" {fault}')
        yield line, picture.strip(), caption.strip()


def _csv_rows(text: str) -> Iterator[tuple[int, str, str]]:
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count))
    try:
        fields = [field.strip().lower() for field in next(reader, [])]
        picture, caption = (fields.index(_column(fields, columns, what)) for what, columns in _COLUMNS)
        for row in reader:
            if any(map(str.strip, row)):
                if len(row) <= max(picture, caption):
                    raise BadInput(f"line {reader.line_num} has {len(row)} of {len(fields)} columns")
                yield reader.line_num, row[picture], row[caption]
    except csv.Error as error:
        raise BadInput(f"line {reader.line_num + 1} is not CSV ({error})") from None


def _json_rows(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        row = decode_json(line, f"line {number}")
        if not isinstance(row, dict):
            raise BadInput(f"line {number} is not a JSON object")
        row = {field.lower(): value for field, value in row.items() if value is not None}
        try:
            columns = [_column([*row], columns, what) for what, columns in _COLUMNS]
        except BadInput as error:
            raise BadInput(f"line {number} {error}") from None
        values = [row[column] for column in columns]
        for column, value in zip(columns, values, strict=True):
            if not isinstance(value, str):
                raise BadInput(f'line {number}: its {column} "{shorten(str(value), 40)}" is not text')
        yield number, *values


_COLUMNS = (("name", NAME_COLUMNS), ("caption", CAPTION_COLUMNS))


def _column(fields: Sequence[str], columns: Sequence[str], what: str) -> str:
    """The first of some columns that a table has. Raises BadInput."""
    if found := next((column for column in columns if column in fields), None):
        return found
    there = ", ".join(f'"{shorten(field, 40)}"' for field in fields[:LISTED_COLUMNS]) or "nothing"
    raise BadInput(f"has no column of the {what}, which is one of {', '.join(columns)}; it has {there}")
