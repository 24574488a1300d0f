"""A small http server for tests: pages by path, and a record of what was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from ..local_server import serving


class ImageServer:
    """`pages` maps a path to a function that answers one request; `asked` lists (path, headers)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    def serve(self, path: str, body: bytes, **headers: str) -> str:
        """Answer with a body; the header names' underscores are dashes. Returns the address."""

        def page(request: BaseHTTPRequestHandler) -> None:
            if headers.get("ETag") and request.headers.get("If-None-Match") == headers["ETag"]:
                request.send_response(304)
                request.end_headers()
                return
            request.send_response(200)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(body)

        return self.page(path, page)

    def redirect(self, path: str, to: str) -> str:
        """Answer with a redirect. Returns the address."""

        def page(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", to)
            request.end_headers()

        return self.page(path, page)

    def page(self, path: str, answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        """Answer by a function. Returns the address."""
        self.pages[path] = answer
        return self.url + path


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """A server on this machine, on a free port, for the time of the `with`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append((self.path, dict(self.headers)))
            page = server.pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            page(self)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True

    with serving(Handler) as url:
        server = ImageServer(url)
        try:
            yield server
        finally:
            server.closing.set()
