"""What the page asks for: the columns of a parquet, and the state of a run after a reload."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainer.errors import BadInput
from .feed import RECENT
from .folders import find_parquet


def add_routes() -> None:
    """Add the pack's routes to ComfyUI's server."""
    routes = PromptServer.instance.routes
    routes.get("/edit_trainer/columns")(columns)
    routes.get("/edit_trainer/runs/{node_id}")(snapshot)


async def columns(request: web.Request) -> web.Response:
    """`?resource=`: the parquet's columns with their types, and which of them are probably the request's."""
    try:
        return web.json_response(await asyncio.to_thread(_columns, request.query.get("resource", "")))
    except BadInput as error:
        return web.json_response({"error": str(error)}, status=400)


async def snapshot(request: web.Request) -> web.Response:
    """The last run of a node, as its events have told it."""
    run = RECENT.snapshot(request.match_info["node_id"])
    return web.json_response({"error": "no run"}, status=404) if run is None else web.json_response(run)


def _columns(resource: str) -> dict[str, Any]:
    from ..trainer.columns import guess_columns
    from ..trainer.resource import parquet_columns

    path = find_parquet(resource)
    return {"columns": parquet_columns(path), "guess": guess_columns(path)}
