"""Pictures in a folder or a zip, by name."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import NoReturn

from ..data.image_refs import MAX_FILE_BYTES, read_local
from ..errors import BadInput, shorten
from ..paths import MAX_ENTRIES

_JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}
"""Files and folders that macOS, Windows and network disks add, in lower case."""


def is_junk(name: str) -> bool:
    """Tell whether a relative path is one that an operating system added, or is hidden."""
    parts = PurePosixPath(name).parts
    return ".." not in parts and any(part.startswith(".") or part.lower() in _JUNK for part in parts)


class PictureSource(ABC):
    """Files below one place, named by relative paths with forward slashes."""

    path: Path
    names: list[str]
    """Names of all files but junk, in no particular order."""

    @abstractmethod
    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `limit` bytes. Raises BadInput, whose message does not name the file."""

    def named(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Read a file as `read` does. Raises BadInput, whose message names source and file."""
        try:
            return self.read(name, limit)
        except BadInput as error:
            raise BadInput(f"{self.path} cannot be packed: {shorten(name)}: {error}.") from None

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


def folder_state(path: Path) -> str:
    """Hash of the names, sizes and modification times of all files in a folder. Raises BadInput and OSError."""
    digest = hashlib.sha256()
    for name in sorted(FolderSource(path).names):
        state = os.stat(path / name)  # noqa: PTH116
        digest.update(f"{name!r} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _refuse(error: OSError) -> NoReturn:
    """Raise BadInput: pictures in a folder that cannot be read must not be passed over."""
    raise BadInput(f"{error.filename} cannot be read: {error.strerror or error}.")


class FolderSource(PictureSource):
    """Files in a folder and in those below it. Links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        """List the files. Raises BadInput for more than MAX_ENTRIES of them, and for a folder that cannot be read."""
        self.path = path
        self.names = []
        for folder, folders, files in os.walk(path, onerror=_refuse):
            start = Path(folder).relative_to(path)
            folders[:] = [name for name in folders if not is_junk(name)]
            self.names += [(start / name).as_posix() for name in files if not is_junk(name)]
            if len(self.names) > MAX_ENTRIES:
                raise BadInput(f"{path} holds more than {MAX_ENTRIES:,} files; name the folder of the pictures.")

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `limit` bytes, following links only as datasets do."""
        try:
            data = read_local(name, self.path)
        except BadInput as error:
            raise BadInput(str(error).removeprefix(f"{shorten(name)}: ")) from None
        if len(data) > limit:
            raise BadInput(f"is larger than {limit:,} bytes")
        return data

    def close(self) -> None:
        """Do nothing: no file stays open."""
