"""Atomic writing, and records that are checked when they are read.

A file or folder appears under its final name only when it is complete. A record is a small JSON object with a format
version and a checksum.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import BadInput, DamagedFile, RunFailed

TEMPORARY_PREFIX = ".writing-"
"""Prefix of unfinished files and folders; those left by a crash can be deleted."""


RECORD_VERSION = 1
"""Format of records. Later formats keep the checksum's rule, so that damage is never taken for a later format."""

MAX_JSON_BYTES = 16 * 2**20
"""Largest JSON file that is read, a judgement: a request with thousands of sample prompts has a few megabytes."""

CHUNK_BYTES = 2**20
"""Bytes of a file that are added to its checksum at a time; a judgement."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Context with a temporary path beside `path`; renames the file or folder made there to `path` on exit.

    A folder must not exist yet under its final name. On an error the temporary is removed and `path` stays as it was.
    `durable` flushes a file to disk first, which is slow, so that it survives a power cut. Raises RunFailed when the
    write fails (disk full, no permission).
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable and temporary.is_file():
            flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise RunFailed(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        remove(temporary)


def temporary_beside(path: Path) -> Path:
    """Return a new temporary path beside `path`; its name is short, as that of `path` may be as long as can be."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}")


def probe(path: Path) -> OSError | None:
    """Create a file, in a new folder if there is none, and delete both again; returns the error where that fails."""
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        return error
    finally:
        remove(path.parent if is_new else path)
    return None


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; errors are ignored."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def named_folder(folder: Path) -> Path:
    """Return the same folder by a path that ends in its name, which `.` and `..` do not. Raises BadInput for a root."""
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    if not folder.name:
        raise BadInput(f"{folder} has no name that the run's weights could get; name a folder in it.")
    return folder


def remove_unfinished(folder: Path) -> None:
    """Delete unfinished files and folders that a crash left in `folder`."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        remove(path)


def flush_to_disk(path: Path) -> None:
    """Flush a file's content to disk, so that it survives a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file atomically. Raises RunFailed."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file atomically. Raises RunFailed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Decode a JSON file. Raises FileNotFoundError, and DamagedFile when it is not standard JSON."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(f"cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_JSON_BYTES:
        raise DamagedFile(f"is larger than {MAX_JSON_BYTES >> 20} MB")
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"is not valid JSON ({str(error)[:200]})") from None


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and writes but JSON does not have."""
    raise ValueError(f"{name} is not a JSON value")


def write_record(path: Path, record: Mapping[str, Any], unchecked: Container[str] = ()) -> None:
    """Write or replace a record atomically; `unchecked` fields are left out of its checksum. Raises RunFailed."""
    record = {**record, "version": RECORD_VERSION}
    record.pop("checksum", None)
    write_json(path, record | {"checksum": _record_checksum(record, unchecked)})


def read_record(path: Path, unchecked: Container[str] = ()) -> dict[str, Any]:
    """Read a record. One without version and checksum was written by an earlier release and is taken as it is.

    Raises FileNotFoundError, DamagedFile, and BadInput for the format of a later release.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise DamagedFile("is not a JSON object")
    checksum, version = record.pop("checksum", None), record.get("version", 0)
    if (checksum is None) != ("version" not in record) or not isinstance(version, int):
        raise DamagedFile("has no checksum or no version")
    if checksum is not None and checksum != _record_checksum(record, unchecked):
        raise DamagedFile("does not match its checksum")
    if version > RECORD_VERSION:
        raise BadInput(
            f"{path} was written by a later version of the trainer (format {version}; this one reads up to "
            f"{RECORD_VERSION}). Use that version, or name another folder for the run."
        )
    return record


def _record_checksum(record: Mapping[str, Any], unchecked: Container[str]) -> str:
    checked = {name: value for name, value in record.items() if name not in unchecked}
    return checksum(json.dumps(checked, sort_keys=True).encode())


def checksum(*parts: bytes | bytearray | memoryview) -> str:
    """Return the CRC-32 of bytes as eight hexadecimal digits.

    It is for damage by disks and memory, not for forgery: it finds every burst of up to 32 bits, and takes half of the
    time of SHA-256.
    """
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def file_checksum(path: Path) -> str:
    """Return the `checksum` of a file's content. Raises OSError."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
