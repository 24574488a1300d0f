"""Pictures behind URLs, as a person looks through the rows of a dataset: shown, refused, and asked for once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ..trainer.edits import png
from ..trainer.image_server import ImageServer, image_server
from .server import Server
from .test_page_routes import ask


@pytest.fixture
def images() -> Iterator[ImageServer]:
    """A server of images on this machine."""
    with image_server() as images:
        yield images


@pytest.fixture(scope="module")
def trusting(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI that was started with private hosts allowed."""
    server = Server(comfyui, tmp_path_factory.mktemp("trusting"), variables={"EDIT_TRAINER_ALLOW_PRIVATE_HOSTS": "1"})
    yield server
    server.close()


def write_rows(server: Server, *urls: str) -> None:
    table = pa.table({"control": list(urls), "target": list(urls), "caption": ["edit"] * len(urls)})
    pq.write_table(table, server.base / "input" / "urls.parquet")


def ask_picture(server: Server, row: int) -> tuple[int, bytes]:
    query = f"resource=urls.parquet&column=control&column=target&row={row}&of=control&px=48"
    return ask(server, f"/edit_trainer/row_picture?{query}")


def test_a_picture_behind_a_url_is_shown_and_asked_for_once(trusting: Server, images: ImageServer) -> None:
    write_rows(trusting, images.serve("/a.png", png(7, (96, 64))))
    for _ in range(2):
        status, data = ask_picture(trusting, 0)
        assert status == 200
        assert Image.open(BytesIO(data)).size == (48, 32)
    assert [path for path, _ in images.asked] == ["/a.png"]


def test_what_cannot_be_shown_says_why(trusting: Server, images: ImageServer) -> None:
    def promise_much(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(2**40))
        request.end_headers()

    urls = [images.url + "/gone.png", images.serve("/text.png", b"words"), images.page("/huge.png", promise_much)]
    write_rows(trusting, *urls)
    for row, reason in enumerate(("the server answers 404", "not a PNG", "larger than 64 MB")):
        status, body = ask_picture(trusting, row)
        assert status == 404
        assert reason in json.loads(body)["error"]


def test_a_private_host_is_not_asked(server: Server, images: ImageServer) -> None:
    write_rows(server, images.serve("/a.png", png(7)))
    status, body = ask_picture(server, 0)
    assert status == 404
    assert "private network" in json.loads(body)["error"]
    assert not images.asked
