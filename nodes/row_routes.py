"""HTTP routes for looking through the rows of a dataset."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..trainer.config.columns import Columns
from ..trainer.errors import BadInput
from .request_body import read_object
from .row_edits import edit_rows, edits_state, find_dataset, read_rows
from .row_reader import READER
from .row_scan import SCANS

MAX_ROWS = 200
"""Rows of one answer; a judgement: a few screens."""
PIXELS = (32, 1024)
"""Smallest and largest picture of a row, in pixels on a side; a judgement."""
MAX_BODY_BYTES = 4 * 2**20
"""Largest request for edits, in bytes; a judgement: some hundred thousand rows."""
READS_AT_ONCE = 2
"""Pictures that are read at once; a judgement: more would keep a training from its cores."""
DOWNLOADS_AT_ONCE = 4
"""Pictures behind URLs that are downloaded at once; a judgement: each holds a thread of the server while it waits."""

_reading = asyncio.Semaphore(READS_AT_ONCE)
_downloading = asyncio.Semaphore(DOWNLOADS_AT_ONCE)


async def rows(request: web.Request) -> web.Response:
    """`?resource=&caption_column=&rows=3,4,5`: those rows, as `{"items": […]}`."""
    wanted = [_number(text, "rows") for text in request.query.get("rows", "").split(",") if text][:MAX_ROWS]
    where = request.query.get("resource", ""), request.query.get("caption_column", "")
    return web.json_response({"items": await asyncio.to_thread(read_rows, *where, wanted)})


async def row_picture(request: web.Request) -> web.Response:
    """`?resource=&images_root=&row=&of=&px=` and each `column` that is shown: a small JPEG of the picture in column
    `of`; status 404 for one that cannot be shown."""
    smallest, largest = PIXELS
    pixels = min(max(_number(request.query.get("px", "160"), "px"), smallest), largest)
    row, columns = _number(request.query.get("row", ""), "row"), request.query.getall("column", [])[:8]
    try:
        async with _reading:
            _check_waiting(request)
            found = await asyncio.to_thread(_picture, request.query, columns, row, pixels)
        if isinstance(found, str):
            async with _downloading:
                _check_waiting(request)
                found = await asyncio.to_thread(READER.download, found, pixels)
    except _ScrolledPast:
        return web.Response(status=499)
    except (BadInput, OSError) as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.Response(body=found, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


async def row_edits(request: web.Request) -> web.Response:
    """`?resource=`: number of rows and edits of a dataset."""
    return web.json_response(await asyncio.to_thread(edits_state, request.query.get("resource", "")))


async def change_row_edits(request: web.Request) -> web.Response:
    """`?resource=`: change a dataset's edits by the body, `{leave_out, take_back, column, captions}` or `{discard}`;
    the response is that of `row_edits`."""
    changes = await read_object(request, MAX_BODY_BYTES)
    return web.json_response(await asyncio.to_thread(edit_rows, request.query.get("resource", ""), changes))


async def row_warnings(request: web.Request) -> web.Response:
    """`?resource=&images_root=&caption_column=&control=&image_column=&from=`: rows that look wrong, from an index on.

    The search begins with the first question and goes on while it is asked about."""
    start = _number(request.query.get("from", "0"), "from")
    return web.json_response(await asyncio.to_thread(_warnings, request.query, start))


class _ScrolledPast(Exception):
    """Nobody waits for the picture any more."""


def _check_waiting(request: web.Request) -> None:
    if request.transport is None or request.transport.is_closing():
        raise _ScrolledPast


def _picture(query: Any, columns: list[str], row: int, pixels: int) -> bytes | str:
    dataset = find_dataset(query.get("resource", ""))
    root = dataset.root(query.get("images_root", ""))
    return READER.picture(dataset.path, dataset.state, columns, row, query.get("of", ""), root, pixels)


def _warnings(query: Any, start: int) -> dict[str, Any]:
    from ..trainer.data.dataset import check_columns

    dataset = find_dataset(query.get("resource", ""))
    root = dataset.root(query.get("images_root", ""))
    controls = tuple(name for name in query.getall("control", []) if name)
    columns = Columns(query.get("caption_column", ""), controls, query.get("image_column", ""))
    check_columns(columns.to_fields(), dataset.path)
    return SCANS.get((dataset.state, columns, root), dataset.path, columns, root).found(start)


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise BadInput(f"{name}: is not a whole number.")
    return int(text)
