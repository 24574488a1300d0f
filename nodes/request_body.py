"""Bodies of requests from the page, of bounded size."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ..trainer.config.validation import decode_json
from ..trainer.errors import BadInput


async def read_body(request: web.Request, limit: int) -> bytes:
    """Read all of a body, which may come in several parts. Raises BadInput for one of more than `limit` bytes."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise BadInput(f"The body is larger than {limit:,} bytes.")
    return bytes(body)


async def read_object(request: web.Request, limit: int) -> dict[str, Any]:
    """Decode a body that is a JSON object. Raises BadInput for any other."""
    decoded = decode_json(await read_body(request, limit), "The body")
    if not isinstance(decoded, dict):
        raise BadInput("The body is not a JSON object.")
    return decoded
