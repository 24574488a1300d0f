"""A dataset of a stranger reaches no host that only this machine can reach."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from trainer.cli.main import main
from trainer.data import hosts
from trainer.data.downloads import Downloads
from trainer.data.hosts import ALLOW_OPTION, ALLOW_VARIABLE, is_public
from trainer.data.image_refs import fetch_control, image_ref
from trainer.errors import BadImage, BadInput

from .edits import opened, png, write, write_files
from .image_server import ImageServer, image_server

PUBLIC = "93.184.215.14"
LIMIT = 2**20


@pytest.fixture(autouse=True)
def strangers_data(servers_of_this_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_VARIABLE)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        yield server


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Answer the next lookups of names ending in .example; returns the list of those that were looked up."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **options):
        if not str(host).endswith(".example"):
            return real(host, port, *rest, **options)
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [part for address in addresses for part in real(address, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


PRIVATE = """
127.0.0.1 127.8.8.8 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 0.1.2.3
192.0.0.1 198.18.0.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1
ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1:: 2002:a00:1::
2001:0:0:0:0:0:80ff:fffe 2001:db8::1 100::1
"""


def test_private_and_public_addresses():
    assert [address for address in PRIVATE.split() if is_public(address)] == []
    for address in (PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert is_public(address)


SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.01",
    "127.0.0.1.",
    "0",
    "10.1.2.3",
    "169.254.169.254",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[0:0:0:0:0:ffff:7f00:1]",
    "localhost",
    "LocalHost.",
    "user:word@127.0.0.1",
    "\u2460\u2461\u2466.0.0.1",
    "127.0.0\u30021",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_host_is_asked(server, tmp_path, host):
    url = f"http://{host}:{urlsplit(server.url).port}/a.png"
    server.serve("/a.png", png(0))
    with pytest.raises(BadImage) as caught:
        fetch_control(url, Downloads(tmp_path))
    assert server.asked == []
    if host.isascii() and "@" not in host and not host.endswith("."):
        assert f"{url}: " in str(caught.value)
        assert all(word in str(caught.value) for word in ("private network", ALLOW_OPTION, f"{ALLOW_VARIABLE}=1"))


def test_literal_addresses_are_bad_rows_without_a_download(tmp_path):
    columns = write_files(tmp_path, 3)
    columns["before"][1] = "http://192.168.0.5/a.png"
    columns["after"][2] = "https://[fd00::1]:8443/a.png"
    with pytest.raises(BadInput) as caught:
        opened(write(tmp_path, columns))
    assert 'row 1, column "before": http://192.168.0.5/a.png: 192.168.0.5 is in a private network' in str(caught.value)
    assert 'row 2, column "after": https://[fd00::1]:8443/a.png: fd00::1 is in a private network' in str(caught.value)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"]])
def test_names_are_refused_by_what_they_resolve_to(server, tmp_path, monkeypatch, addresses):
    resolve(monkeypatch, addresses)
    port = urlsplit(server.url).port
    with pytest.raises(BadImage, match=rf"http://pictures\.example:{port}/a\.png: pictures\.example \({addresses[-1]}"):
        Downloads(tmp_path).fetch(f"http://pictures.example:{port}/a.png", LIMIT)
    assert server.asked == []


def test_a_name_is_looked_up_once_and_connected_to_where_it_was_checked(server, tmp_path, monkeypatch):
    asked = resolve(monkeypatch, [PUBLIC], ["127.0.0.1"])
    connected, real = [], socket.create_connection

    def create_connection(place, *rest):
        connected.append(place[0])
        return real(("127.0.0.1", place[1]), *rest)

    monkeypatch.setattr(hosts.socket, "create_connection", create_connection)
    server.serve("/a.png", b"content")
    url = f"http://pictures.example:{urlsplit(server.url).port}/a.png"
    assert Downloads(tmp_path).fetch(url, LIMIT) == b"content"
    assert (asked, connected) == (["pictures.example"], [PUBLIC])
    assert server.asked[0][1]["Host"] == urlsplit(url).netloc


@pytest.mark.parametrize("target", ["http://10.0.0.7/a.png", "http://inside.example/a.png", "https://[::1]/a.png"])
def test_every_hop_of_a_redirect_is_checked(server, tmp_path, monkeypatch, target):
    monkeypatch.setattr(hosts, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    resolve(monkeypatch, ["192.168.7.7"])
    server.redirect("/0.png", target)
    server.redirect("/1.png", server.url + "/0.png")
    with pytest.raises(BadImage, match="is in a private network") as caught:
        Downloads(tmp_path).fetch(server.url + "/1.png", LIMIT)
    assert target in str(caught.value)
    assert [path for path, _ in server.asked] == ["/1.png", "/0.png"]


def test_a_proxy_may_be_private_but_leads_to_no_private_host(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.serve("http://pictures.invalid/a.png", b"content")
    downloads = Downloads(tmp_path)
    assert downloads.fetch("http://pictures.invalid/a.png", LIMIT) == b"content"
    with pytest.raises(BadImage, match="private network"):
        downloads.fetch("http://10.0.0.7/a.png", LIMIT)
    assert len(server.asked) == 1


def test_a_stored_copy_does_not_open_the_door(server, tmp_path, monkeypatch):
    url = server.serve("/a.png", b"content", ETag='"v1"')
    with monkeypatch.context() as allowed:
        allowed.setenv(ALLOW_VARIABLE, "1")
        assert Downloads(tmp_path).fetch(url, LIMIT) == b"content"
        allowed.setenv(ALLOW_VARIABLE, "0")
        with pytest.raises(BadImage, match="private network"):
            Downloads(tmp_path).fetch(url, LIMIT)


def test_only_who_starts_the_program_allows_it(server, tmp_path, monkeypatch, capsys):
    columns = write_files(tmp_path, 2)
    columns["before"] = [server.serve(f"/{number}.png", png(number)) for number in range(2)]
    path = write(tmp_path, columns)
    request = {
        "resource": str(path),
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": {"caption_column": "prompt", "control_image_column": "before", "image_column": "after"},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    train = ["train", str(tmp_path / "request.json"), "--out", str(tmp_path / "run")]
    assert main(train) == 2
    assert 'row 0, column "before": ' in (said := capsys.readouterr().err)
    assert ALLOW_OPTION in said
    (tmp_path / "settings.json").write_text('{"allow_private_hosts": true}')
    assert main([*train, "--settings", str(tmp_path / "settings.json")]) == 2
    assert "allow_private_hosts" in capsys.readouterr().err
    (tmp_path / "request.json").write_text(json.dumps(request | {"allow_private_hosts": True}))
    assert main(train) == 2
    assert "allow_private_hosts: unknown field" in capsys.readouterr().err
    assert server.asked == []
    monkeypatch.setenv(ALLOW_VARIABLE, "0")  # restored after the test, which lets the option set it
    inspect = ["inspect", str(path), "--caption-column", "prompt", "--control-image-column", "before"]
    assert main([*inspect, "--image-column", "after", ALLOW_OPTION]) == 0
    assert "2 rows, all usable" in capsys.readouterr().out


def test_references_are_not_refused_where_private_hosts_are_allowed(monkeypatch):
    monkeypatch.setenv(ALLOW_VARIABLE, "1")
    assert image_ref("http://127.0.0.1/a.png").kind == "url"
