"""Guard of the pack's routes against other sites' pages, and their error responses."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from ..trainer.errors import BadInput, RunFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def same_origin_only(handler: Handler) -> Handler:
    """Wrap a handler: requests from other sites' pages get status 403, whatever ComfyUI's own settings allow.

    ComfyUI's page and programs other than browsers pass. BadInput becomes status 400 with `{"error": message}`, and
    RunFailed status 500.
    """

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        if _foreign(request):
            return web.json_response({"error": "Requests from other sites are not allowed."}, status=403)
        try:
            answer = await handler(request)
        except BadInput as error:
            answer = web.json_response({"error": str(error)}, status=400)
        except RunFailed as error:
            answer = web.json_response({"error": str(error)}, status=500)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return answer

    return guarded


def _foreign(request: web.Request) -> bool:
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower()
