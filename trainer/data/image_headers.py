"""Work that decoding an encoded image takes, told from its header; and PNGs without what decoding does not need."""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from ..errors import BadImage

MAX_METADATA = 1 << 20
"""Bytes of a part that may hold an orientation; a judgement: cameras write a few kilobytes, with a preview 64 KB."""


MAX_PNG_CHUNKS = 1 << 17
"""Chunks of a PNG; a judgement: writers make one of each 8 KB, and the largest file that is read has 256 MB."""


MAX_TIFF_VALUES = 1 << 18
"""Values of a TIFF's tag. The longest list what each row of the largest image needs, for four planes."""


MAX_TIFF_TILE = 1 << 24
"""Pixels of a TIFF's tile; a judgement: writers use up to a million."""


_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


_PNG_ORIENTATION_MARKS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Names of PNG texts that may hold an orientation."""


_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""A marker in entropy-coded data, other than the restarts that belong to it."""


_SOS, _EOI, _NO_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)


_TIFF_BYTES = {1, 2, 6, 7}
"""Types of a tag whose values are bytes, which Pillow keeps as they are."""


_TILE_WIDTH, _TILE_LENGTH, _SHORT = 322, 323, 3


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of HEIF files; those of AVIF files with the last two are told by their other brands."""


_BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/", b"UklGR", b"R0lGOD", b"data:image/")
"""Beginnings of PNG, JPEG, WebP and GIF in base64, and of a data URL."""


_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)


class Png(NamedTuple):
    """A PNG that holds what decoding needs."""

    data: bytes
    has_orientation: bool
    """True where it may hold an orientation."""


def image_format(data: bytes) -> str | None:
    """Name of the format that data begins as; None for one that is not supported."""
    for start, name in _FORMATS:
        if data.startswith(start):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        # The brands: the major one, its version, and those it is compatible with.
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if {brands[at : at + 4] for at in range(0, len(brands), 4)} & {b"avif", b"avis"}:
            return "AVIF"
    return None


def foreign_format(data: bytes) -> str:
    """Say what data that is no supported image is, and what to do about it; empty where it is not recognized."""
    if data.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, the file itself was not downloaded; run `git lfs pull`"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "it is a HEIC image; save it as JPEG or PNG"
    if data.startswith(_BASE64_STARTS):
        return "it is base64 text; decode it and store the bytes themselves"
    if data[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it looks like a web page"
    return ""


def needed_png(data: bytes) -> Png:
    """Drop the chunks of a PNG that its first picture does not need, except those that may hold an orientation.

    Metadata of any kind and size is then no reason to refuse a picture. Raises BadImage for data that is cut off.
    """
    view, parts, oriented = memoryview(data), [memoryview(data)[:8]], False
    at, kind, count = 8, b"", 0
    while kind != b"IEND":
        count += 1
        if count > MAX_PNG_CHUNKS:
            raise BadImage(f"it has more than {MAX_PNG_CHUNKS:,} pieces; save it again")
        head = data[at : at + 8]
        if len(head) < 8:
            raise BadImage("the image is damaged or cut off (it ends before its last chunk)")
        kind, end = head[4:], at + 12 + int.from_bytes(head[:4], "big")
        if kind in _PNG_NEEDED:
            parts.append(view[at:end])
        elif _may_turn(kind, view[at:end]):
            parts.append(view[at:end])
            oriented = True
        at = end
    return Png(data if sum(map(len, parts)) == len(data) else b"".join(parts), oriented)


def _may_turn(kind: bytes, chunk: memoryview) -> bool:
    """Tell whether a PNG's chunk is whole, not too long, and may hold an orientation."""
    if kind != b"eXIf" and kind not in _PNG_TEXTS:
        return False
    length = len(chunk) - 12
    if length > MAX_METADATA or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    content = bytes(chunk[8:-4])
    if kind == b"eXIf":
        return True
    mark = next((mark for mark in _PNG_ORIENTATION_MARKS if content.startswith(mark)), None)
    if mark is None:
        return False
    packed = content[len(mark) + 1 :] if kind == b"zTXt" else b""
    if kind == b"iTXt" and content[len(mark) : len(mark) + 1] == b"\1":
        packed = content[len(mark) + 2 :].split(b"\0", 2)[-1]
    try:
        return not packed or len(zlib.decompressobj().decompress(packed, MAX_METADATA)) < MAX_METADATA
    except zlib.error:
        return False


def jpeg_scans(data: bytes) -> int:
    """Number of scans of a JPEG's first picture: each of a progressive one goes over all of its blocks."""
    at, scans = 2, 0
    while at < len(data):
        found = _JPEG_MARKER.match(data, at) if data[at] == 0xFF else None
        found = found or _JPEG_MARKER.search(data, at)
        if found is None or found[1][0] == _EOI:
            break
        marker, at = found[1][0], found.end()
        scans += marker == _SOS
        if marker not in _NO_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def check_tiff(data: bytes) -> None:
    """Raise BadImage for a TIFF whose first directory lists far more than its picture can need, or is cut off."""
    order, big = "<" if data.startswith(b"I") else ">", data[2:4] in (b"+\0", b"\0+")
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        at += 8 if big else 2
        tile = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
        for entry in range(at, at + min(entries, 1 << 16) * (20 if big else 12), 20 if big else 12):
            tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
            if kind not in _TIFF_BYTES and count > MAX_TIFF_VALUES:
                raise BadImage(f"its tag {tag} has {count:,} values, more than any picture needs")
            if tag in tile:
                value = order + ("H" if kind == _SHORT else "I")
                (tile[tag],) = struct.unpack_from(value, data, entry + (12 if big else 8))
    except struct.error:
        raise BadImage("the image is damaged or cut off (its directory is not there)") from None
    if tile[_TILE_WIDTH] * tile[_TILE_LENGTH] > MAX_TIFF_TILE:
        raise BadImage(f"its tiles have {tile[_TILE_WIDTH]} x {tile[_TILE_LENGTH]} pixels, too many to be decoded")
