"""References to images in parquet cells, and reading their encoded bytes, with the safety limits on paths and files."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from string import whitespace
from typing import Any, Literal
from urllib.parse import urlsplit

from ..errors import BadImage, BadInput, shorten
from ..paths import path_kind, typed_path
from .downloads import Downloads
from .hosts import check_literal

MAX_FILE_BYTES = 256 * 2**20
"""A judgement: more than an encoded image of MAX_PIXELS usually takes."""


LINK_VARIABLE = "EDIT_TRAINER_LINK_ROOTS"
"""Environment variable with folders that links to images may lead to, separated as in PATH."""


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=://)|(?:file|data)(?=:)", re.IGNORECASE)


_BASE64 = re.compile(r"iVBORw0KGgo|/9j/|UklGR[A-Za-z0-9+/]{20}|R0lGOD")
"""Beginnings of PNG, JPEG, WebP and GIF in base64."""


_ABSOLUTE = re.compile(r"/|[A-Za-z]:")


_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


class MissingFile(str):
    """Reason why an image cannot be read: its file is not there."""

    path: str
    folder: str

    def __new__(cls, path: str, folder: str) -> MissingFile:
        """Put the relative path of a file and the folder that it starts from into words."""
        reason = super().__new__(cls, f"{path}: no such file below {folder}")
        reason.path, reason.folder = path, folder
        return reason

    def __getnewargs__(self) -> tuple[str, str]:
        return self.path, self.folder


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Reference to an image: a relative path with forward slashes, a URL, or the encoded bytes."""

    kind: Literal["path", "url", "bytes"]
    value: str | bytes = field(repr=False)

    def __str__(self) -> str:
        return self.value if isinstance(self.value, str) else f"{len(self.value)} bytes"


def image_ref(value: Any) -> ImageRef:
    """Parse a parquet cell: text (relative path or http(s) URL), encoded bytes, or a {bytes, path} struct.

    The struct is that of the Hugging Face `datasets` library; its bytes take precedence. Raises BadImage for null,
    empty and other values, other URL schemes, numeric addresses of private networks, absolute paths, and paths that
    leave their folder with `..`.
    """
    if isinstance(value, str):
        return _text_ref(value)
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        return image_ref(value.get("path") if value.get("bytes") is None else value["bytes"])
    if value is None:
        raise BadImage("is null")
    if isinstance(value, bytes | bytearray | memoryview):
        if not value:
            raise BadImage("is empty (0 bytes)")
        return ImageRef("bytes", bytes(value))
    raise BadImage(f"is {type(value).__name__}, not a path, a URL or image bytes")


def is_absent(cell: str | bytes | None) -> bool:
    """Tell whether a cell is null or empty, as `Cells.absent` does for many."""
    return cell is None or not (cell.strip(whitespace) if isinstance(cell, str) else cell)


def _text_ref(text: str) -> ImageRef:
    if not text.strip():
        raise BadImage("is empty text")
    if _CONTROL_CHARACTER.search(text):
        raise BadImage(f"{shorten(text)}: control characters are not allowed in a path or URL")
    if _BASE64.match(text):
        raise BadImage(f"{shorten(text, 40)}: is base64 text; decode it and store the bytes themselves (binary)")
    if ":" in text and (scheme := _SCHEME.match(text)):
        if scheme[0].lower() == "hf":
            raise BadImage(f"{shorten(text)}: hf:// is not read; download the dataset and use relative paths")
        if scheme[0].lower() not in ("http", "https"):
            raise BadImage(f"{shorten(text)}: {scheme[0]}: is not allowed; use a relative path or an http(s) URL")
        return ImageRef("url", _checked_url(text))
    path = text.replace("\\", "/")
    if _ABSOLUTE.match(path):
        raise BadImage(
            f"{shorten(text)}: absolute paths are not allowed; make it relative to the images "
            "folder, or embed the image's bytes"
        )
    depth = 0
    for part in path.split("/") if ".." in path else ():
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            raise BadImage(f"{shorten(text)}: leaves the images folder")
    return ImageRef("path", path)


def _checked_url(url: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise BadImage(f"{shorten(url)}: not a valid URL ({error})") from None
    if not host:
        raise BadImage(f"{shorten(url)}: the URL names no host")
    try:
        check_literal(host)
    except BadImage as error:
        raise BadImage(f"{shorten(url)}: {error}") from None
    return url


def local_file(path: str, root: Path) -> Path:
    """Resolve a relative path below `root`, following symbolic links as far as `linked_folders` allow.

    Raises BadImage when a link leads anywhere else, and when the file is missing or not a regular file.
    """
    try:
        file = os.path.realpath(as_on_disk(root / path))
        real_root = os.path.realpath(root)
        if not any(Path(file).is_relative_to(folder) for folder in (real_root, *linked_folders(Path(real_root)))):
            raise BadImage(
                f"{shorten(path)}: is a link that leaves the images folder, to {shorten(file)}. Copy the file itself, "
                f"or, if you trust the link, start the program with {LINK_VARIABLE} set to the folder of its target"
            )
        mode = os.stat(file).st_mode  # noqa: PTH116
    except FileNotFoundError:
        raise BadImage(MissingFile(shorten(path), str(root))) from None
    except OSError as error:
        raise BadImage(f"{shorten(path)}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise BadImage(f"{shorten(path)}: is not a file")
    return Path(file)


def as_on_disk(path: Path) -> Path:
    """Path in the Unicode form that its file has: macOS and archives made there decompose accents, parquets may not."""
    if str(path).isascii() or path.exists():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


def hub_snapshot(path: Path) -> Path | None:
    """Folder of the revision of a dataset in the Hugging Face hub's cache that a path is in; None for any other."""
    revisions = (place for place in (path, *path.parents) if place.parent.name == "snapshots")
    return next((place for place in revisions if place.parent.parent.name.startswith("datasets--")), None)


def linked_folders(root: Path) -> tuple[str, ...]:
    """Folders outside of a resolved images folder that links in it may lead to.

    In the Hugging Face cache a repository's `snapshots/<revision>` holds links to the files in its `blobs`, which
    nothing else writes to. All others are named in LINK_VARIABLE by whoever starts the program.
    """
    named = filter(None, os.environ.get(LINK_VARIABLE, "").split(os.pathsep))
    snapshot = hub_snapshot(root)
    blobs = [str(snapshot.parent.parent / "blobs")] if snapshot else []
    return (*blobs, *(os.path.realpath(folder) for folder in named))


def read_bytes(ref: ImageRef, root: Path, downloads: Downloads) -> bytes:
    """Read or download the encoded bytes of an image. Raises BadImage if missing, empty or over MAX_FILE_BYTES."""
    if isinstance(ref.value, bytes):
        return _checked_size(ref.value, "")
    if ref.kind == "url":
        return _checked_size(downloads.fetch(ref.value, MAX_FILE_BYTES), f"{shorten(ref.value)}: ")
    return read_local(ref.value, root)


def read_local(path: str, root: Path) -> bytes:
    """Read the encoded bytes of an image at a relative path below `root`. Raises BadImage as `read_bytes` does."""
    return _read_file(local_file(path, root), shorten(path))


def _read_file(file: Path, shown: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1) if file.stat().st_size <= MAX_FILE_BYTES else None
    except OSError as error:
        raise BadImage(f"{shown}: cannot be read ({error.strerror or error})") from None
    if data is None:
        raise BadImage(f"{shown}: the file is larger than {MAX_FILE_BYTES >> 20} MB")
    return _checked_size(data, f"{shown}: ")


def _checked_size(data: bytes, where: str) -> bytes:
    if not data:
        raise BadImage(f"{where}is empty (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise BadImage(f"{where}is larger than {MAX_FILE_BYTES >> 20} MB")
    return data


def fetch_control(url_or_path: str, downloads: Downloads, base: Path | None = None) -> bytes:
    """Read the encoded bytes of a sample's control image: an http(s) URL or a local path.

    Relative paths are looked up in `base`, then in the current folder. Raises BadImage naming the image.
    """
    if _SCHEME.match(url_or_path) or not url_or_path.strip():
        return read_bytes(_text_ref(url_or_path), Path(), downloads)
    try:
        path = typed_path(url_or_path)
        places = [path] if base is None or path.is_absolute() else [base / path, path]
        file = next((place for place in places if path_kind(place) == "file"), None)
    except BadInput as error:
        raise BadImage(str(error).removesuffix(".")) from None
    if file is not None:
        return _read_file(file, shorten(url_or_path))
    raise BadImage(f"{shorten(url_or_path)}: no such image file; tried {', '.join(str(place) for place in places)}")
