"""Small encoded images that ask for far more memory or time than their size suggests."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, bits: int, colour: int, row_bytes: int) -> bytes:
    """A PNG of zeros."""
    compressor, row = zlib.compressobj(1), bytes(1 + row_bytes)
    rows = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(*chunk) for chunk in [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    )


def gray(side: int = 64) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side]
    return Image.fromarray(((x + y) % 251).astype(np.uint8))


def many_scans(side: int = 1500, scans: int = 2000) -> bytes:
    """A progressive JPEG of which one scan is repeated."""
    data = encoded(gray(side), "JPEG", progressive=True, quality=20)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    return data[: starts[2]] + data[starts[1] : starts[2]] * scans + data[starts[2] :]


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    """A TIFF of tags (number, type, count, value); `rest` follows the directory."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rest


GRAY_TIFF = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]


def many_strips(count: int = 2_000_000) -> bytes:
    at = 8 + 2 + 12 * 9 + 4
    tags = [*GRAY_TIFF, (259, 3, 1, 1), (273, 4, count, at), (278, 4, 1, 1), (279, 4, count, at)]
    return tiff(tags, bytes(4 * count))


def large_tiles() -> bytes:
    tags = [*GRAY_TIFF, (259, 3, 1, 8), (322, 4, 1, 60_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 100)]
    return tiff(tags, bytes(200))


def many_chunks() -> bytes:
    """A PNG that is good but for four million chunks of nothing."""
    data = encoded(gray(), "PNG")
    return data[:33] + png_chunk(b"teSt", b"") * 4_000_000 + data[33:]


def short_runs(side: int = 4000) -> bytes:
    """A BMP of runs of one pixel, which Pillow decodes one by one."""
    rows = b"\1\7" * side + b"\0\0"
    body = rows * side + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def long_comment() -> bytes:
    data = encoded(gray(), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)  # after the palette
    return data[:at] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 40_000 + b"\0" + data[at:]


def exif_pieces() -> bytes:
    data = encoded(gray(), "JPEG")
    piece = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(0xFFFF - 8)
    return data[:2] + piece * 1000 + data[2:]


TOO_SLOW = "more than [0-9.]+ seconds"


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a PNG of 100 megapixels of 16 bits": (lambda: png_of(10_000, 10_000, 16, 0, 20_000), ""),
    "a JPEG of two thousand scans": (many_scans, "scans over 1500 x 1500 pixels take too long"),
    "a TIFF of two million strips": (many_strips, "its tag 273 has 2,000,000 values"),
    "a TIFF of large tiles": (large_tiles, "its tiles have 60000 x 30000 pixels"),
    "a PNG of four million chunks": (many_chunks, "more than 131,072 pieces"),
    "a BMP of short runs": (short_runs, TOO_SLOW),
    # Before 13, Pillow joined the pieces of a comment in time that grows with their square.
    "a GIF of a long comment": (long_comment, "" if int(pillow_version.partition(".")[0]) >= 13 else TOO_SLOW),
    "a JPEG of a thousand pieces of EXIF": (exif_pieces, TOO_SLOW),
    "a WebP of 64 megapixels": (
        lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, method=0),
        "take 976 MB to decode",
    ),
}
"""Encoders, with the pattern of the refusal; none where the image is decoded."""
