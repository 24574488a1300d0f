"""HTTP routes for the page: runs in progress, saved runs, parquets, requests and base models."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainer.config.columns import CONTROL_COLUMNS
from ..trainer.errors import BadInput
from .delete_run import delete_run
from .exports import publish_checkpoint
from .folders import contained_images, find_contained_parquet, list_parquets
from .live_run import LIVE_RUNS
from .model_files import AUTO
from .notes import input_notes, request_notes
from .push_run import push_contents, push_run
from .request_body import read_body
from .row_routes import change_row_edits, row_edits, row_picture, row_warnings, rows
from .same_origin import same_origin_only
from .saved_runs import list_runs, run_details, sample_file, shrink_to_jpeg, thumbnail
from .uploads import pack, upload
from .widgets import COLUMN_INPUTS, CONTROL_COLUMN_FIELDS

THUMBNAIL_PIXELS = (32, 512)
"""Smallest and largest thumbnail, in pixels on a side; a judgement."""
FIRST_ROWS, FIRST_ROW_PIXELS, MAX_COLUMNS = 3, 96, 4
"""Rows shown of a parquet, pixels on a side of their images, and number of columns; a judgement."""
MAX_TEXT_CHARS = 300
"""Characters shown of a text in the first rows; a judgement."""
MAX_REQUEST_BYTES = 4 * 2**20
"""Largest pasted request, in bytes; a judgement: real ones have a few kilobytes."""


def add_routes() -> None:
    """Add the pack's routes to ComfyUI's server."""
    routes = PromptServer.instance.routes
    for path, handler in {
        "/edit_trainer/runs/{node_id}": snapshot,
        "/edit_trainer/archive": saved_runs,
        "/edit_trainer/archive/{run}": saved_run,
        "/edit_trainer/archive/{run}/{file}": picture,
        "/edit_trainer/push/{run}": push_preview,
        "/edit_trainer/parquets": parquets,
        "/edit_trainer/columns": columns,
        "/edit_trainer/first_rows": first_rows,
        "/edit_trainer/dataset_notes": dataset_notes,
        "/edit_trainer/rows": rows,
        "/edit_trainer/row_picture": row_picture,
        "/edit_trainer/row_edits": row_edits,
        "/edit_trainer/row_warnings": row_warnings,
        "/edit_trainer/base_model": base_model,
    }.items():
        routes.get(path)(same_origin_only(handler))
    for path, handler in {
        "/edit_trainer/runs/{node_id}/stop": stop,
        "/edit_trainer/runs/{node_id}/sample": sample_now,
        "/edit_trainer/archive/{run}/export": export,
        "/edit_trainer/archive/{run}/delete": delete,
        "/edit_trainer/push/{run}": push,
        "/edit_trainer/upload": upload,
        "/edit_trainer/row_edits": change_row_edits,
        "/edit_trainer/pack": pack,
        "/edit_trainer/request": read_request,
        "/edit_trainer/request_notes": notes_on_request,
    }.items():
        routes.post(path)(same_origin_only(handler))


async def snapshot(request: web.Request) -> web.Response:
    """Snapshot of a node's last run; null when there is none."""
    return web.json_response(LIVE_RUNS.snapshot(request.match_info["node_id"]))


async def stop(request: web.Request) -> web.Response:
    """Make the node's run end after the current step, with a checkpoint, samples and the weights of that step."""
    return _send_control(request, "stop_and_export")


async def sample_now(request: web.Request) -> web.Response:
    """Make the node's run generate its samples after the current step."""
    return _send_control(request, "sample_now")


async def saved_runs(request: web.Request) -> web.Response:
    """Summaries of all runs in the output folder."""
    return web.json_response(await asyncio.to_thread(list_runs, LIVE_RUNS.running()))


async def saved_run(request: web.Request) -> web.Response:
    """Details of one run in the output folder."""
    return web.json_response(await asyncio.to_thread(run_details, request.match_info["run"], LIVE_RUNS.running()))


async def picture(request: web.Request) -> web.StreamResponse:
    """A sample image of a run. `?px=`: a thumbnail of at most this many pixels on a side."""
    path = sample_file(request.match_info["run"], request.match_info["file"])
    headers = {"Cache-Control": "private, max-age=60"}
    if "px" not in request.query:
        return web.FileResponse(path, headers=headers)
    data = await asyncio.to_thread(thumbnail, path, _pixels(request))
    return web.Response(body=data, content_type="image/jpeg", headers=headers)


async def export(request: web.Request) -> web.Response:
    """`?step=`: export the weights of a run's checkpoint to ComfyUI's model folders; the response names the file."""
    step = request.query.get("step", "")
    if not step.isdecimal() or len(step) > 18:
        raise BadInput("step: is not a whole number.")
    return web.json_response(await asyncio.to_thread(publish_checkpoint, request.match_info["run"], int(step)))


async def delete(request: web.Request) -> web.Response:
    """Delete a run that is not in progress; the response says whether it is in the system's bin."""
    in_bin = await asyncio.to_thread(delete_run, request.match_info["run"], LIVE_RUNS.running())
    return web.json_response({"in_bin": in_bin})


async def push_preview(request: web.Request) -> web.Response:
    """Step and file names of what a push of a run would send. Nothing leaves the machine."""
    return web.json_response(await asyncio.to_thread(push_contents, request.match_info["run"]))


async def push(request: web.Request) -> web.Response:
    """`?repo=&private=`: push a run's LoRA to the Hugging Face hub, which the page's user has confirmed; the response
    has its address. Private unless `private` is 0."""
    repo, private = request.query.get("repo", ""), request.query.get("private") != "0"
    return web.json_response(await asyncio.to_thread(push_run, request.match_info["run"], repo, private))


async def parquets(request: web.Request) -> web.Response:
    """Parquets for the page's menu."""
    return web.json_response(await asyncio.to_thread(list_parquets))


async def columns(request: web.Request) -> web.Response:
    """`?resource=`: the parquet's columns with types and kinds, a guess at the request's columns, the number of rows,
    and texts of the first rows. An unknown file gives status 200 with `{"error": …}`: the page asks as one types."""
    try:
        return web.json_response(await asyncio.to_thread(_columns, request.query.get("resource", "")))
    except BadInput as error:
        return web.json_response({"error": str(error)})


async def first_rows(request: web.Request) -> web.Response:
    """`?resource=&column=&column=&images_root=`: images of the first rows of each column as small data URLs, null for
    those that cannot be shown. Images behind URLs are not downloaded."""
    names = request.query.getall("column", [])[:MAX_COLUMNS]
    where = request.query.get("resource", ""), request.query.get("images_root", "")
    return web.json_response(await asyncio.to_thread(_first_rows, *where, names))


async def dataset_notes(request: web.Request) -> web.Response:
    """`?resource=&images_root=` and the column fields that are not linked: notes on them, as `{"notes": […]}`."""
    columns = {field: request.query[field] for field in COLUMN_INPUTS if field in request.query}
    where = request.query.get("resource", ""), columns, request.query.get("images_root", "")
    return web.json_response({"notes": await asyncio.to_thread(input_notes, *where)})


async def base_model(request: web.Request) -> web.Response:
    """`?base_model=&transformer=&connected=`: files that will be loaded, as `{"lines": […]}`, or `{"error": …}`.
    `connected` names the connected inputs among clip and vae."""
    choice = request.query.get("base_model", ""), request.query.get("transformer", AUTO)
    connected = request.query.getall("connected", [])
    try:
        return web.json_response({"lines": await asyncio.to_thread(_base_model, *choice, connected)})
    except BadInput as error:
        return web.json_response({"error": str(error)})


async def read_request(request: web.Request) -> web.Response:
    """Check the body, a fine-tune request's JSON. The response is `{"request": …}` with all defaults, or every fault as
    `{"error": …}`."""
    from ..trainer.config.request import parse_request

    text = await read_body(request, MAX_REQUEST_BYTES)
    try:
        return web.json_response({"request": parse_request(text).model_dump()})
    except BadInput as error:
        return web.json_response({"error": str(error)})


async def notes_on_request(request: web.Request) -> web.Response:
    """Notes on the body, a fine-tune request's JSON, as `{"notes": […]}`."""
    text = await read_body(request, MAX_REQUEST_BYTES)
    return web.json_response({"notes": await asyncio.to_thread(request_notes, text)})


def _send_control(request: web.Request, what: str) -> web.Response:
    control = LIVE_RUNS.control(request.match_info["node_id"])
    if control is None:
        return web.json_response({"error": "The run is not in progress."}, status=409)
    getattr(control, what)()
    return web.json_response({})


def _pixels(request: web.Request) -> int:
    smallest, largest = THUMBNAIL_PIXELS
    pixels = request.query.get("px", str(largest))
    if not pixels.isdecimal() or len(pixels) > 6:
        raise BadInput("px: is not a whole number.")
    return min(max(int(pixels), smallest), largest)


def _by_input(guess: dict[str, Any]) -> dict[str, str]:
    """Guessed columns by the dataset node's input."""
    controls = guess.pop(CONTROL_COLUMNS, [])
    return guess | dict(zip(CONTROL_COLUMN_FIELDS, controls, strict=False))


def _columns(resource: str) -> dict[str, Any]:
    from ..trainer.data.columns import first_look, guess_from_kinds
    from ..trainer.data.parquet import parquet_columns
    from ..trainer.data.row_blocks import RowBlocks

    path = find_contained_parquet(resource)
    kinds, texts = first_look(path)
    blocks = RowBlocks(path, ())
    blocks.close()
    return {
        "columns": parquet_columns(path),
        "kinds": kinds,
        "guess": _by_input(guess_from_kinds(kinds)),
        "rows": blocks.rows,
        "texts": {
            name: [text[:MAX_TEXT_CHARS] for text in values[:FIRST_ROWS]]
            for name, values in texts.items()
            if kinds[name] == "text"
        },
    }


def _base_model(name: str, transformer: str, connected: list[str]) -> list[str]:
    from .model_files import check_connected, import_models, open_choice

    import_models()
    from .model_info import describe

    both = check_connected(name, transformer, "clip" in connected, "vae" in connected)
    return describe(open_choice(name, transformer, both), both)


def _first_rows(resource: str, images_root: str, names: list[str]) -> dict[str, list[str | None]]:
    from ..trainer.data.columns import column_kinds
    from ..trainer.data.row_blocks import RowBlocks

    path = find_contained_parquet(resource)
    root = contained_images(path, images_root)
    if root is None:
        raise BadInput("images_root: is not in ComfyUI's input folder.")
    kinds = column_kinds(path)
    names = [name for name in names if kinds.get(name) in ("image", "either")]
    blocks = RowBlocks(path, names)
    try:
        cells = blocks.block(0).columns if names and blocks.rows else ()
        return {
            name: [_small(column[row], root) for row in range(min(FIRST_ROWS, len(column)))]
            for name, column in zip(blocks.columns, cells, strict=False)
        }
    finally:
        blocks.close()


def _small(value: str | bytes | None, root: Path) -> str | None:
    """Image of a cell as a data URL; None if it cannot be shown."""
    from ..trainer.data.downloads import Downloads
    from ..trainer.data.image_refs import image_ref, read_bytes

    try:
        reference = image_ref(value)
        if reference.kind == "url":
            return None
        data = shrink_to_jpeg(read_bytes(reference, root, Downloads()), FIRST_ROW_PIXELS)
    except (BadInput, UnicodeDecodeError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
