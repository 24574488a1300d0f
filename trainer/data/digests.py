"""Digests of image files: what a dataset is follows from the content of its files, not from when they were written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..config.columns import Columns
from ..errors import BadImage, BadInput, RunFailed
from ..files import write_text
from .cells import Cells, used_values
from .image_refs import MAX_FILE_BYTES, as_on_disk, image_ref, local_file
from .images import EncodedImage
from .resize import Size
from .row_blocks import RowBlocks

VERSION = 1
"""Layout of the kept digests."""

SETTLED_NS = 2 * 10**9
"""Age that a file must have for its digest to be kept, as a second change within the clock's resolution would not show.
FAT's clock is the coarsest: two seconds."""

READERS = 4
"""Threads that read files; a judgement: a disk gains little from more."""

CHUNK = 1 << 20
"""Bytes per read; a judgement."""

READ_AT_ONCE = 32 * 2**20
"""Bytes of the largest file that is read at once, by each reader; a judgement: nearly all images are smaller."""

MISSING = "missing"
"""In place of the digest of a file that is not there or cannot be an image."""

FileState = tuple[int, int, int, int]
"""Size, modification time, change time and inode of a file: one of them changes with its content."""


class FileDigests:
    """SHA-256 digests of the files below one folder, kept on disk so that an unchanged file is read once.

    What is kept only saves time: a file whose state differs in any way is read again, and a kept list that is damaged
    is made anew.
    """

    def __init__(self, folder: Path | None, root: Path) -> None:
        """`folder` keeps one list for each `root`, the folder that the files' names start from; None keeps nothing."""
        self.root = root
        name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:32]
        self._list = folder and folder / f"{name}.json"
        self._kept = _read_kept(self._list) if self._list else {}
        self._changed = False
        self.digests: dict[str, str] = {}
        """Digests by name, as far as they were asked for."""
        self.sizes: dict[str, Size] = {}
        """Sizes in pixels of those that can be images."""

    def read(self, names: Sequence[str]) -> Generator[None, None, list[str]]:
        """Return the hexadecimal digests of files, yielding after each one that is read; MISSING for what is no file.

        Names are relative, with forward slashes.
        """
        with ThreadPoolExecutor(READERS, thread_name_prefix="digest-files") as pool:
            new = [name for name in dict.fromkeys(names) if name not in self.digests and not self._look_up(name)]
            reading = [pool.submit(_read_digest, name, self.root) for name in new]
            try:
                for name, result in zip(new, reading, strict=True):
                    digest, size, state = result.result()
                    self._take(name, digest, size)
                    if state is not None:
                        self._kept[name] = [*state, digest, *(size or ())]
                        self._changed = True
                    yield
            finally:
                for result in reading:
                    result.cancel()
        return [self.digests[name] for name in names]

    def keep(self) -> None:
        """Write the list to the disk. If that fails, the next run reads the files again; nothing else is lost."""
        if self._changed and self._list:
            with suppress(RunFailed):
                text = json.dumps({"version": VERSION, "files": self._kept}, separators=(",", ":"))
                write_text(self._list, f"{_checksum(text)}\n{text}")
            self._changed = False

    def _look_up(self, name: str) -> bool:
        """Take the kept digest of a file that has not changed; tell whether there is one."""
        kept = self._kept.get(name)
        try:
            unchanged = kept is not None and tuple(kept[:4]) == _state(_stat(self.root, name))
        except OSError:
            return False
        if kept is not None and unchanged:
            self._take(name, kept[4], Size(*kept[5:]) if kept[5:] else None)
        return unchanged

    def _take(self, name: str, digest: str, size: Size | None) -> None:
        self.digests[name] = digest
        if size is not None:
            self.sizes[name] = size


def file_states(names: Iterable[str], root: Path) -> Iterator[FileState | None]:
    """States of files by relative name; None for one that is not there."""
    for name in names:
        try:
            yield _state(_stat(root, name))
        except OSError:
            yield None


def pictures_state(parquet: Path, columns: Columns, root: Path) -> str:
    """Hash of the states of all files that hold a parquet's images; another one where a file was replaced or touched.

    Columns whose images all lie in the parquet are not read. Raises BadInput.
    """
    digest = hashlib.sha256()
    blocks = RowBlocks(parquet, ())
    try:
        names = [name for name in columns.names[1:] if blocks.may_name_files(name)]
    finally:
        blocks.close()
    if not names:
        return ""
    blocks = RowBlocks(parquet, names)
    try:
        for block in blocks:
            for cells in block.columns:
                files, _ = named_files(cells, np.ones(len(cells), dtype=bool))
                states = file_states([name for name in files if _is_path(name)], root)
                digest.update(repr(list(states)).encode())
    finally:
        blocks.close()
    return digest.hexdigest()


def named_files(cells: Cells, rows: np.ndarray) -> tuple[list[str], list[int]]:
    """Paths and URLs, with forward slashes, of the cells in `rows`, bool [rows], that have no bytes.

    Returns each of them once, and for each such cell the index of its own. Raises UnicodeDecodeError.
    """
    if cells.text is None:
        return [], []
    texts = used_values(cells.text.filter(pa.array(rows & ~cells.has_data)).drop_null())
    return [name.replace("\\", "/") for name in texts.dictionary.to_pylist()], texts.indices.to_pylist()


def _is_path(name: str) -> bool:
    try:
        return image_ref(name).kind == "path"
    except (BadImage, UnicodeDecodeError):
        return False


def _stat(root: Path, name: str) -> os.stat_result:
    try:
        return os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - a Path for each of 100 000 names is slow
    except FileNotFoundError:
        return as_on_disk(root / name).stat()


def _state(status: os.stat_result) -> FileState:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read_digest(name: str, root: Path) -> tuple[str, Size | None, FileState | None]:
    """Digest of a file, its size in pixels if it can be an image, and its state if all of this can be kept."""
    try:
        with local_file(name, root).open("rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode) or before.st_size > MAX_FILE_BYTES:
                return MISSING, None, None
            digest, size = _digest_and_size(file, before.st_size)
        after = _stat(root, name)
    except (BadInput, OSError):
        return MISSING, None, None
    settled = time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > SETTLED_NS
    return digest, size, _state(after) if settled and _state(before) == _state(after) else None


def _digest_and_size(file: BinaryIO, length: int) -> tuple[str, Size | None]:
    if length <= READ_AT_ONCE:
        data = file.read()
        with suppress(BadImage):
            return hashlib.sha256(data).hexdigest(), EncodedImage(data).size
        return hashlib.sha256(data).hexdigest(), None
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest(), None


def _read_kept(path: Path) -> dict[str, list[Any]]:
    """Kept states and digests by name; none where the list is missing, damaged or of another version."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        kept = json.loads(text) if checksum == _checksum(text) else {}
        return kept["files"] if kept["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
