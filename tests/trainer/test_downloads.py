from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest

from trainer.data.downloads import Downloads
from trainer.errors import BadImage, RunFailed

from .image_server import ImageServer, image_server

LIMIT = 2**20


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        yield server


@pytest.fixture
def downloads(tmp_path) -> Downloads:
    return Downloads(tmp_path / "downloads", timeout=1.0, deadline=1.5)


def test_one_request_for_many_uses(server, downloads):
    url = server.serve("/a.png", b"content")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: downloads.fetch(url, LIMIT), range(40))) == {b"content"}
    assert len(server.asked) == 1
    assert "edit-trainer" in server.asked[0][1]["User-Agent"]


def test_the_next_run_asks_whether_it_has_changed(server, downloads):
    url = server.serve("/a.png", b"one", ETag='"v1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
    assert downloads.fetch(url, LIMIT) == b"one"
    again = Downloads(downloads.folder)
    assert again.fetch(url, LIMIT) == b"one"
    assert server.asked[1][1]["If-None-Match"] == '"v1"'
    assert server.asked[1][1]["If-Modified-Since"] == "Mon, 01 Jan 2024 00:00:00 GMT"
    server.serve("/a.png", b"two", ETag='"v2"')
    assert Downloads(downloads.folder).fetch(url, LIMIT) == b"two"
    assert Downloads(downloads.folder).fetch(url, LIMIT) == b"two"


def test_without_validators_the_next_run_fetches_anew(server, downloads):
    url = server.serve("/a.png", b"one")
    assert downloads.fetch(url, LIMIT) == b"one"
    server.serve("/a.png", b"two")
    assert downloads.fetch(url, LIMIT) == b"one"
    assert Downloads(downloads.folder).fetch(url, LIMIT) == b"two"


def test_a_stored_image_does_not_stand_in_for_a_silent_server(downloads):
    with image_server() as server:
        url = server.serve("/a.png", b"one", ETag='"v1"')
        downloads.fetch(url, LIMIT)
    with pytest.raises(BadImage, match="cannot be fetched"):
        Downloads(downloads.folder).fetch(url, LIMIT)


def test_a_damaged_store_is_fetched_again(server, downloads):
    url = server.serve("/a.png", b"content", ETag='"v1"')
    downloads.fetch(url, LIMIT)
    (stored,) = downloads.folder.iterdir()
    stored.write_bytes(stored.read_bytes()[:-2])
    assert Downloads(downloads.folder).fetch(url, LIMIT) == b"content"
    stored.unlink()
    with pytest.raises(RunFailed, match="removed or damaged"):
        downloads.fetch(url, LIMIT)


def test_errors_of_the_server_are_told_once_asked(server, downloads):
    for _ in range(2):
        with pytest.raises(BadImage, match="answers 404"):
            downloads.fetch(server.url + "/none.png", LIMIT)
    assert len(server.asked) == 1


def trickle(server: ImageServer, start: bytes, drop: bytes):
    def page(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(start)
        while not server.closing.wait(0.1):
            request.wfile.write(drop)
            request.wfile.flush()

    return page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.0 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
    ],
    ids=["silent", "slow header", "slow body", "endless body"],
)
def test_a_server_that_hangs_or_trickles_fails_in_time(server, downloads, start, drop):
    url = server.page("/slow.png", trickle(server, start, drop))
    began = time.monotonic()
    with pytest.raises(BadImage, match="did not deliver within"):
        downloads.fetch(url, LIMIT)
    assert time.monotonic() - began < 3


@pytest.mark.slow
def test_a_host_that_stays_silent_is_not_waited_for_again_and_again(server, downloads):
    for number in range(30):
        server.page(f"/{number}.png", trickle(server, b"", b""))
    began = time.monotonic()
    for number in range(30):
        with pytest.raises(BadImage):
            downloads.fetch(f"{server.url}/{number}.png", LIMIT)
    assert time.monotonic() - began < 8
    assert len(server.asked) == 3


def test_too_large_is_refused_by_header_and_while_reading(server, downloads):
    url = server.serve("/declared.png", bytes(LIMIT + 1))
    with pytest.raises(BadImage, match="larger than 1 MB"):
        downloads.fetch(url, LIMIT)

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not server.closing.is_set():
            request.wfile.write(bytes(65536))

    with pytest.raises(BadImage, match="larger than 1 MB"):
        downloads.fetch(server.page("/endless.png", endless), LIMIT)
    assert not list(downloads.folder.glob("*"))


def test_a_cut_connection_is_not_taken_for_the_whole(server, downloads):
    url = server.serve("/cut.png", b"half", Content_Length="8")
    with pytest.raises(BadImage, match="4 of 8 bytes"):
        downloads.fetch(url, LIMIT)


def test_redirects(server, downloads, tmp_path):
    server.serve("/0.png", b"content")
    for number in range(1, 8):
        server.redirect(f"/{number}.png", f"/{number - 1}.png")
    assert downloads.fetch(server.url + "/5.png", LIMIT) == b"content"
    with pytest.raises(BadImage, match="answers 302"):
        downloads.fetch(server.url + "/7.png", LIMIT)
    (tmp_path / "secret").write_text("secret")
    for number, target in enumerate([f"file://{tmp_path}/secret", "ftp://127.0.0.1/a", "gopher://127.0.0.1/"]):
        with pytest.raises(BadImage):
            downloads.fetch(server.redirect(f"/away{number}", target), LIMIT)


def test_addresses_as_people_write_them(server, downloads):
    server.serve("/a%20b/%C3%A4.png?q=1%202", b"content")
    assert downloads.fetch(server.url + "/a b/ä.png?q=1 2#part", LIMIT) == b"content"
    for url in ["http://host:port/a.png", "http://127.0.0.1:1/a.png", "http://nowhere.invalid/a.png"]:
        with pytest.raises(BadImage, match=r"cannot be fetched|not a valid URL"):
            downloads.fetch(url, LIMIT)


def test_a_full_disk_is_not_the_images_fault(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFailed, match="Cannot write"):
        Downloads(tmp_path / "file" / "downloads").fetch(server.serve("/a.png", b"x"), LIMIT)


@pytest.mark.slow
def test_no_thread_outlives_a_hanging_server_for_long(server, downloads):
    with pytest.raises(BadImage):
        downloads.fetch(server.page("/slow.png", trickle(server, b"HTTP/1.0 200 OK\r\n\r\n", b"x")), LIMIT)
    end = time.monotonic() + 5
    while any(thread.name == "edit-trainer-download" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)
