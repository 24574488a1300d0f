"""Hostile and foreign zips: nothing leaves its place, and nothing is unpacked beyond what is read."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.packing import zips
from trainer.packing.zips import MAX_DIRECTORY_BYTES, ZipSource

from .edits import png
from .packed_sets import in_zip, packed, pair, refused


def entry(name: str, data: bytes = b"", **fields: int) -> Callable[[zipfile.ZipFile], None]:
    """Adds an entry with fields of its header set."""

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        for field, value in fields.items():
            setattr(info, field, value)
        archive.writestr(info, data)

    return add


@pytest.mark.parametrize(
    ("add", "fault"),
    [
        (entry("../target/a.png"), "leads out of it"),
        (entry("target/../../a.png"), "leads out of it"),
        (entry("/etc/passwd"), "leads out of it"),
        (entry("C:/a.png"), "leads out of it"),
        (entry("..\\..\\a.png"), "leads out of it"),
        (entry("target/a.png", b"/x", external_attr=(stat.S_IFLNK | 0o777) << 16, create_system=3), "is a link"),
        (entry("target/a.png", png(1), compress_type=zipfile.ZIP_LZMA), "compressed in a way that is not read"),
    ],
)  # fmt: skip
def test_an_archive_that_leads_elsewhere_is_refused(
    add: Callable[[zipfile.ZipFile], None], fault: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        add(archive)
    refused(tmp_path / "set.zip", fault)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = in_zip(tmp_path, pair("a", 1))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    refused(path, "is encrypted")


def test_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZipSource, "read", lambda *_: pytest.fail("unpacked"))
    monkeypatch.setattr(zips, "MIN_UNPACKED", 2**20)
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"target/{number}.png", bytes(2**20))
    refused(tmp_path / "large.zip", "would unpack to")
    path = in_zip(tmp_path, pair("a", 1))
    data = path.read_bytes()
    start, first = data.index(b"PK\x01\x02"), data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    record, end = data[start:first], bytearray(data[data.index(b"PK\x05\x06") :])
    entries = b"".join(record.replace(b"control/a.png", f"control/{n:05}".encode()) for n in range(10_000))
    end[12:16] = len(entries).to_bytes(4, "little")
    (tmp_path / "overlap.zip").write_bytes(data[:start] + entries + bytes(end))
    refused(tmp_path / "overlap.zip", "its files overlap")
    end[12:16] = (MAX_DIRECTORY_BYTES + 1).to_bytes(4, "little")
    (tmp_path / "directory.zip").write_bytes(data[:start] + bytes(MAX_DIRECTORY_BYTES + 1) + bytes(end))
    refused(tmp_path / "directory.zip", "directory takes more than")


def test_names_of_archives_made_on_other_systems(tmp_path: Path) -> None:
    files = {"control\\e\u0301.png": png(1), "target/\u00e9.png": png(2), "target/\u00e9.txt": b"x"}
    path = in_zip(tmp_path, files)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 9), (b"PK\x03\x04", 7)):  # without the flag for UTF-8
        at = data.find(signature)
        while at >= 0:
            data[at + offset] &= ~8
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    assert packed(path) == [(1, 2, "x")]
