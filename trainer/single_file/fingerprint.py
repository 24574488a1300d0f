"""Names for the content of model files, cheap enough for files of many gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

FULL_HASH_BELOW = 64 * 2**20
"""Bytes; smaller files are hashed whole."""


CHUNK = 2**20


CHUNKS = 16


def files_in(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """All files in the named subfolders, by their paths below `folder`."""
    files: dict[str, Path] = {}
    for name in names:
        found = {path.relative_to(folder).as_posix(): path for path in (folder / name).rglob("*") if path.is_file()}
        files |= {relative: found[relative] for relative in sorted(found)}
    return files


def fingerprint_files(files: Mapping[str, Path], *extra: object) -> str:
    """A hexadecimal digest of files, under the names that they are known by, and of `extra`.

    Of a file of 64 MiB or more its size and 16 evenly spaced chunks of 1 MiB stand for the rest; the first holds a
    safetensors header, the last ends with the file. Same files, same digest, wherever they lie.
    """
    digest = hashlib.sha256(repr(extra).encode())
    for name, path in files.items():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        _update(digest, path)
    return digest.hexdigest()[:32]


def _update(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < FULL_HASH_BELOW:
            digest.update(file.read())
            return
        for index in range(CHUNKS):
            file.seek((size - CHUNK) * index // (CHUNKS - 1))
            digest.update(file.read(CHUNK))
