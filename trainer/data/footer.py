"""The footer of a parquet, without pyarrow's column metadata, which ends the process where a footer is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO

from .thrift import NotThrift, list_places, read_struct, varint

_ROW_GROUPS = 4
"""Number of the field in the footer. Source of all numbers:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift"""


_ONE_LIST = 0x19
"""First byte of a row group: its first field is the list of its column chunks."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Description of a column chunk."""

    path: str
    """Names of the column and of its parts, joined by dots."""
    index: int
    """Index among the parquet's leaf columns."""
    is_bytes: bool
    """True for values of variable length."""
    is_fixed: bool
    """True for bytes of fixed length."""
    values: int
    start: int
    """Offset of its first page."""
    nulls: int | None
    """Number of nulls, if the writer counted them."""


class Footer:
    """Row groups of a parquet, by number."""

    def __init__(self, file: BinaryIO, columns: int) -> None:
        """Read the footer of a parquet with so many leaf columns. Raises ValueError where it is damaged."""
        size = file.seek(0, SEEK_END)
        file.seek(max(size - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(size - 8 - length, 0))
        self._data = file.read(length)
        try:
            self._places = list_places(self._data, _ROW_GROUPS)
            for place in self._places:
                count = self._data[place + 1] >> 4
                count = count if count < 15 else varint(self._data, place + 2)[0]
                if self._data[place] != _ONE_LIST or count != columns:
                    raise ValueError(f"a row group has {count} of {columns} columns")
        except (NotThrift, IndexError) as error:
            raise ValueError(f"its footer is damaged ({error})") from None

    def __len__(self) -> int:
        return len(self._places)

    def chunks(self, group: int) -> list[Chunk]:
        """Column chunks of a row group. Raises ValueError where the footer is damaged."""
        try:
            found, _ = read_struct(self._data, self._places[group])
            return [_chunk(index, column[3]) for index, column in enumerate(found[1])]
        except (NotThrift, IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its footer is damaged ({error})") from None


def _chunk(index: int, fields: dict) -> Chunk:
    path = ".".join(part.decode("utf-8", "replace") for part in fields[3])
    pages, dictionary, nulls = fields[9], fields.get(11) or fields[9], fields.get(12, {}).get(3)
    if not all(isinstance(value, int) for value in (fields[5], pages, dictionary, nulls or 0)):
        raise TypeError(f"{path} has a field of another type")
    return Chunk(path, index, fields[1] == 6, fields[1] == 7, fields[5], min(pages, dictionary), nulls)
