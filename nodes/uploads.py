"""Parquets that a person drops on the page or chooses there."""

from __future__ import annotations

import asyncio
import filecmp
import uuid
from pathlib import Path

from aiohttp import web

from ..trainer.errors import BadInput
from .folders import input_folder, is_folder_name

MAX_UPLOAD_BYTES = 1 << 40
"""Largest uploaded parquet, in bytes; a judgement, beyond any dataset for one GPU."""
UPLOAD_CHUNK = 1 << 20
"""Bytes written at a time; a judgement."""


async def upload(request: web.Request) -> web.Response:
    """`?name=`: save the body, a parquet, in the input folder. An existing file is never overwritten; the response has
    the name of the new one, or of an existing one of this name with the same contents."""
    name = request.query.get("name", "")
    if not is_folder_name(name) or not name.lower().endswith(".parquet"):
        raise BadInput(f'"{name}" cannot be used; the name must end in .parquet and have none of < > : " / \\ | ? *')
    folder = input_folder()
    temporary = folder / f".uploading-{uuid.uuid4().hex}"
    try:
        size = 0
        with temporary.open("wb") as file:
            async for chunk in request.content.iter_chunked(UPLOAD_CHUNK):
                size += len(chunk)
                if size > MAX_UPLOAD_BYTES:
                    raise BadInput("The parquet is too large to be uploaded; copy it into ComfyUI's input folder.")
                await asyncio.to_thread(file.write, chunk)
        from ..trainer.data.parquet import read_schema

        try:
            await asyncio.to_thread(read_schema, temporary)
        except BadInput:
            raise BadInput(f'"{name}" is not a parquet file, or was cut off during the upload.') from None
        path, number = folder / name, 1
        while path.exists() and not await asyncio.to_thread(_same_contents, path, temporary):
            number += 1
            path = folder / f"{name[: -len('.parquet')]}-{number}.parquet"
        if not path.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return web.json_response({"name": path.name})


def _same_contents(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)
