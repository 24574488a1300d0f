"""Digests of model files, cheap enough for files of many gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

FULL_HASH_BELOW = 64 * 2**20
"""Size in bytes below which a file is hashed completely. A judgement: reading 64 MiB takes a fraction of a second
even from a hard disk. Part of every fingerprint."""


CHUNK = 2**20
"""Bytes of a sample. Part of every fingerprint."""


CHUNKS = 16
"""Samples of a file. A judgement: weights of different trainings differ everywhere. Part of every fingerprint."""


def files_in(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """All files in the named subfolders of `folder`, by relative POSIX path."""
    files: dict[str, Path] = {}
    for name in names:
        found = {path.relative_to(folder).as_posix(): path for path in (folder / name).rglob("*") if path.is_file()}
        files |= {relative: found[relative] for relative in sorted(found)}
    return files


def fingerprint_files(files: Mapping[str, Path], *extra: object) -> str:
    """Hexadecimal digest of files under their given names, and of `extra`; independent of the files' location.

    A file of 64 MiB or more is represented by its size and 16 evenly spaced chunks of 1 MiB, from its first byte, where
    a safetensors header is, to its last.
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
