"""Reads structs of Thrift's compact protocol, in which parquet writes its footer and the header of each page.

pyarrow reads both too, but shows no page's header, and gives a footer all the memory that it asks for.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import re
from typing import Any

MAX_DEPTH = 12
"""Structs within each other; a judgement: parquet's own nest half as deep."""


_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


_INTEGERS = (4, 5, 6)


_VARINT = re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]")


_PLAIN_FIELDS = re.compile(
    b"(?:[%s][\x80-\xff]{0,9}[\x00-\x7f]|[%s])*"
    % tuple(
        b"".join(re.escape(bytes([step << 4 | kind])) for step in range(1, 16) for kind in kinds)
        for kinds in (_INTEGERS, (_TRUE, _FALSE))
    )
)
"""Consecutive fields that are integers or booleans. Most of a footer's are, and one match is far faster than a loop."""


class NotThrift(ValueError):
    """Bytes that are not a struct of the compact protocol."""


def read_struct(data: bytes, at: int = 0, depth: int = 1) -> tuple[dict[int, Any], int]:
    """Fields of a struct by number, and the offset after it: integers, structs, and lists of structs and of bytes.

    Raises IndexError where `data` ends too early, and NotThrift.
    """
    if depth > MAX_DEPTH:
        raise NotThrift("it nests too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        number, at = _field_number(data, at, head, number)
        kind = head & 15
        if kind in _INTEGERS:
            fields[number], at = _integer(data, at)
        elif kind == _STRUCT:
            fields[number], at = read_struct(data, at, depth + 1)
        elif kind in (_TRUE, _FALSE):  # A boolean field has its value in its type.
            fields[number] = int(kind == _TRUE)
        elif kind in (_LIST, _SET):
            fields[number], at = _read_list(data, at, depth)
        else:
            at = _skip(data, at, kind)
    return fields, at + 1


def list_places(data: bytes, wanted: int) -> list[int]:
    """Offsets of the structs in a list that is a field of a struct. Raises IndexError and NotThrift."""
    places: list[int] = []
    at = number = 0
    while head := data[at]:
        number, at = _field_number(data, at, head, number)
        kind = head & 15
        if kind in (_LIST, _SET):
            size, part, at = _list(data, at)
            for _ in range(size):
                if number == wanted:
                    places.append(at)
                at = skip_struct(data, at) if part == _STRUCT else _skip(data, at, part)
        elif kind == _STRUCT:
            at = skip_struct(data, at)
        elif kind not in (_TRUE, _FALSE):
            at = _skip(data, at, kind)
    return places


def count_structs(data: bytes) -> list[int]:
    """Number of structs in a struct, by depth; the outermost has depth 1. Raises IndexError and NotThrift."""
    counts = [0] * (MAX_DEPTH + 1)
    skip_struct(data, 0, counts)
    return counts


def skip_struct(data: bytes, at: int, counts: list[int] | None = None) -> int:
    """Offset after a struct. `counts` counts the structs by depth. Raises IndexError and NotThrift."""
    counts = counts or [0] * (MAX_DEPTH + 1)
    counts[1] += 1
    following = [0]
    """For each open struct, the number of structs that follow it in its list."""
    while following:
        at = _after(_PLAIN_FIELDS, data, at)
        head = data[at]
        at += 1
        kind = head & 15
        if not head:
            if following[-1]:
                following[-1] -= 1
                counts[len(following)] += 1
            else:
                following.pop()
            continue
        if not head >> 4:
            at = _after(_VARINT, data, at)
        structs = int(kind == _STRUCT)
        if kind in (_LIST, _SET):
            size, part, at = _list(data, at)
            structs = size if part == _STRUCT else 0
            for _ in range(size - structs):
                at = _skip(data, at, part)
        elif not structs and kind not in (_TRUE, _FALSE):
            at = _skip(data, at, kind)
        if structs:
            following.append(structs - 1)
            if len(following) > MAX_DEPTH:
                raise NotThrift("it nests too deeply")
            counts[len(following)] += 1
    return at


def _field_number(data: bytes, at: int, head: int, before: int) -> tuple[int, int]:
    """Number of the field whose first byte, at `at`, is `head`, and the offset after it. A small difference to the
    number of the field before is in that byte."""
    if head >> 4:
        return before + (head >> 4), at + 1
    return _integer(data, at + 1)


def _read_list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    """Structs or bytes of a list; no values of other types."""
    size, part, at = _list(data, at)
    values: list[Any] = []
    for _ in range(size):
        if part == _STRUCT:
            value, at = read_struct(data, at, depth + 1)
            values.append(value)
        else:
            start, at = at, _skip(data, at, part)
            if part == _BINARY:
                values.append(data[varint(data, start)[1] : at])
    return values, at


def _skip(data: bytes, at: int, kind: int) -> int:
    """Offset after a value that holds no others. Booleans are those of a list, which take a byte."""
    if kind in _INTEGERS:
        return _after(_VARINT, data, at)
    if kind in (_BYTE, _TRUE, _FALSE):
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        length, at = varint(data, at)
        return at + length
    raise NotThrift(f"it has a value of type {kind}")


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """Length of a list, the type of its values, and the offset of the first."""
    size, part = data[at] >> 4, data[at] & 15
    if size < 15:
        return size, part, at + 1
    size, at = varint(data, at + 1)
    if size > len(data):
        raise NotThrift("it has a list that is longer than itself")
    return size, part, at


def _after(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    found = pattern.match(data, at)
    if found is None:
        raise IndexError(at) if at >= len(data) - 10 else NotThrift("it has a number of more than 64 bits")
    return found.end()


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of variable length, and the offset after it. Raises IndexError and NotThrift."""
    end = _after(_VARINT, data, at)
    number = 0
    for byte in reversed(data[at:end]):
        number = number << 7 | byte & 127
    return number, end
