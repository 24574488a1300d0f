"""Parquets and zips of pictures that a person drops on the page or chooses there, and the packing of such a zip."""

from __future__ import annotations

import asyncio
import filecmp
import threading
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

from ..trainer.errors import BadInput
from ..trainer.events import drain
from .folders import contained_path, input_folder, is_folder_name
from .request_body import read_object

MAX_UPLOAD_BYTES = 1 << 40
"""Largest uploaded file, in bytes; a judgement, beyond any dataset for one GPU."""
UPLOAD_CHUNK = 1 << 20
"""Bytes written at a time; a judgement."""


MAX_JSON_BYTES = 1 << 18
"""Largest body of a request to pack, in bytes; a judgement: a path and a long caption, with escapes."""

_NAMING = threading.Lock()
"""Held while a new file gets a name that none has yet, so that two at once do not choose one name."""


async def upload(request: web.Request) -> web.Response:
    """`?name=`: save the body, a parquet or a zip, in the input folder. An existing file is never overwritten; the
    response has the name of the new one, or of an existing one of this name with the same contents."""
    name = request.query.get("name", "")
    if not is_folder_name(name) or not name.lower().endswith((".parquet", ".zip")):
        raise BadInput(
            f'"{name}" cannot be used; the name must end in .parquet or .zip and have none of < > : " / \\ | ? *'
        )
    folder = input_folder()
    temporary = folder / f".uploading-{uuid.uuid4().hex}"
    try:
        size = 0
        with temporary.open("wb") as file:
            async for chunk in request.content.iter_chunked(UPLOAD_CHUNK):
                size += len(chunk)
                if size > MAX_UPLOAD_BYTES:
                    raise BadInput(f'"{name}" is too large to be uploaded; copy it into ComfyUI\'s input folder.')
                await asyncio.to_thread(file.write, chunk)
        path = await asyncio.to_thread(_keep_upload, temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return web.json_response({"name": path.name})


async def pack(request: web.Request) -> web.Response:
    """Pack a zip or a folder of pictures in the input folder. The body is `{"path": …}`, relative to it, and may have a
    `caption` for all pairs; the response is `{"parquet": …}`, the new file beside what was packed."""
    asked = await read_object(request, MAX_JSON_BYTES)
    return web.json_response({"parquet": await asyncio.to_thread(_pack, asked)})


def _pack(asked: dict[str, Any]) -> str:
    from ..trainer.packing.pack import PackOptions
    from ..trainer.packing.pack import pack as pack_pictures

    path, caption = (asked.get(key, "") for key in ("path", "caption"))
    if not isinstance(path, str) or not isinstance(caption, str) or not path.strip():
        raise BadInput("path: name a zip or a folder of pictures in ComfyUI's input folder.")
    source, folder = contained_path(input_folder(), path), input_folder().resolve()
    if source is None or source == folder or not source.is_relative_to(folder):
        raise BadInput(f'"{path}" is not in ComfyUI\'s input folder.')
    temporary = source.with_name(f".packing-{uuid.uuid4().hex}.parquet")
    try:
        drain(pack_pictures(source, temporary, PackOptions(caption=caption)))
        stem = source.stem if source.suffix.lower() == ".zip" else source.name
        return _keep(temporary, source.with_name(f"{stem}.parquet")).relative_to(folder).as_posix()
    finally:
        temporary.unlink(missing_ok=True)


def _keep_upload(temporary: Path, path: Path) -> Path:
    """Check an uploaded file and give it its name, as `_keep` does."""
    from ..trainer.data.parquet import read_schema
    from ..trainer.packing.zips import ZipSource

    is_zip = path.suffix.lower() == ".zip"
    try:
        if is_zip:
            ZipSource(temporary).close()
        else:
            read_schema(temporary)
    except BadInput as error:
        why = f": {str(error).removeprefix(str(temporary)).strip()}" if is_zip else "."
        kind = "zip that can be used" if is_zip else "parquet file"
        raise BadInput(f'"{path.name}" is not a {kind}, or was cut off during the upload{why}') from None
    return _keep(temporary, path)


def _keep(temporary: Path, path: Path) -> Path:
    """Rename a new file to `path`, or to a numbered name where that is another file's. One with the same contents is
    taken in its place."""
    with _NAMING:
        place, number = path, 1
        while place.exists() and not _same_contents(place, temporary):
            number += 1
            place = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not place.exists():
            temporary.replace(place)
    return place


def _same_contents(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)
