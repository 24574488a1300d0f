"""Pictures in a zip, read one at a time. Nothing is unpacked to the disk, so that no name leads anywhere.

A zip of a stranger may name paths outside of it, hold links, or be a bomb: a few bytes that unpack to terabytes. All
sizes are looked at before anything is unpacked, and an entry yields no more than the size that it states.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..data.image_refs import MAX_FILE_BYTES
from ..errors import BadInput, shorten
from ..paths import MAX_ENTRIES
from .folder import PictureSource, is_junk

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Bytes of a zip's directory; a judgement: a hundred thousand files with long names. Python makes about ten times as
much memory of it."""

MAX_UNPACKED = 50
"""Size of all files unpacked, as a multiple of the zip's; a judgement: pictures are compressed already, and drawings
saved as BMP or TIFF shrink to a twentieth. Deflate reaches a thousand."""

MIN_UNPACKED = 2**30
"""Bytes below which that multiple does not matter; a judgement: read and thrown away in seconds."""

_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Kinds of compression. The others are rare, and LZMA takes as much memory as the zip asks for."""

_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
"""Errors of Python's zip reader for a damaged zip."""


class _BoundedFile(io.FileIO):
    """File that refuses to read more at once than any entry or the directory may have."""

    limit = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as FileIO does. Raises ValueError where that is too much."""
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > self.limit:
            raise ValueError(f"its directory takes more than {self.limit:,} bytes")
        return super().read(size) or b""


class ZipSource(PictureSource):
    """Files in a zip."""

    def __init__(self, path: Path) -> None:
        """Read the directory. Raises BadInput for what is no zip, or is not safe to read."""
        self.path = path
        self._file = _BoundedFile(path)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._file.limit = MAX_FILE_BYTES + 1
            self._entries = _checked_entries(self._zip.infolist(), self._file.seek(0, io.SEEK_END))
        except BadInput as error:
            self._file.close()
            raise BadInput(f"{path} cannot be used: {error}.") from None
        except _FAULTS as error:
            self._file.close()
            raise BadInput(f"{path} cannot be read as a zip: {shorten(str(error)) or type(error).__name__}.") from None
        self.names = list(self._entries)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Unpack a file of at most `limit` bytes into memory."""
        entry = self._entries[name]
        if entry.file_size > limit:
            raise BadInput(f"is larger than {limit:,} bytes")
        try:
            with self._zip.open(entry) as stream:
                data = stream.read(entry.file_size + 1)
        except _FAULTS as error:
            raise BadInput(f"is damaged ({shorten(str(error)) or type(error).__name__})") from None
        if len(data) != entry.file_size:
            raise BadInput(f"is cut off: {len(data):,} of {entry.file_size:,} bytes")
        return data

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()
        self._file.close()


def _checked_entries(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name, but folders and junk. Raises BadInput, in words that follow "cannot be used: "."""
    if len(infos) > MAX_ENTRIES:
        raise BadInput(f"it holds {len(infos):,} files; at most {MAX_ENTRIES:,} are looked at")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _name(info)
        if info.is_dir() or name.endswith("/") or is_junk(name):
            continue
        if fault := _fault(name, info):
            raise BadInput(f'"{shorten(name)}" {fault}')
        if name in entries:
            raise BadInput(f'it has "{shorten(name)}" twice')
        entries[name] = info
    if sum(info.compress_size for info in entries.values()) > size:
        raise BadInput("its files overlap, so that they would unpack to more than they are")
    unpacked = sum(info.file_size for info in entries.values())
    if unpacked > max(MIN_UNPACKED, MAX_UNPACKED * size):
        raise BadInput(f"its {size:,} bytes would unpack to {unpacked:,}, which pictures do not; unpack it yourself")
    return entries


def _name(info: zipfile.ZipInfo) -> str:
    """Name of an entry with forward slashes. Where the zip does not say that it is UTF-8, as macOS does not, it still
    may be."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _fault(name: str, info: zipfile.ZipInfo) -> str | None:
    """Say why an entry is not read, in words that follow its name."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":" or not path.parts:
        return "leads out of it"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 1:
        return "is encrypted; unpack it with its password first"
    if info.compress_type not in _READABLE:
        return "is compressed in a way that is not read; pack it again as an ordinary zip"
    return None
