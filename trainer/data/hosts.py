"""Which hosts images may be downloaded from: those of the public internet, unless whoever starts the program allows
private ones. A dataset or a request of a stranger then reaches nothing that only this machine can reach.

The check is part of connecting, so that it covers every redirect, and a name cannot resolve to another address after it
was checked.
"""

from __future__ import annotations

import http.client
import os
import socket
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadImage

ALLOW_OPTION = "--allow-private-hosts"
"""Option of the command line that allows private hosts."""

ALLOW_VARIABLE = "EDIT_TRAINER_ALLOW_PRIVATE_HOSTS"
"""Environment variable that allows private hosts when it is 1."""

_NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses that carry an IPv4 address in their last 32 bits. Source: RFC 6052."""

_IPV4_COMPATIBLE = IPv6Network("::/96")
"""The former embedding of IPv4 addresses. Source: RFC 4291."""


def allow_private_hosts() -> None:
    """Allow private hosts in this process and in those that it starts; for the command line alone."""
    os.environ[ALLOW_VARIABLE] = "1"


def private_hosts_allowed() -> bool:
    """Tell whether images may come from private hosts."""
    return os.environ.get(ALLOW_VARIABLE) == "1"


def is_public(address: str) -> bool:
    """Tell whether a numeric IP address belongs to the public internet, also where it is wrapped in an IPv6 one."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        ip = _wrapped(ip) or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _wrapped(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if ip in _NAT64 or (ip in _IPV4_COMPATIBLE and int(ip) > 1):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def public_addresses(host: str, port: int) -> list[str]:
    """Resolve a host to numeric addresses.

    Raises BadImage when one of them is private and private hosts are not allowed, and OSError when there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if not private_hosts_allowed():
        _refuse_private(host, addresses)
    return addresses


def check_literal(host: str) -> None:
    """Raise BadImage for a host that is private by its spelling alone; looks no name up."""
    if private_hosts_allowed():
        return
    try:
        # The system takes more spellings of IPv4 addresses than ipaddress: 127.1, 0x7f000001, 2130706433.
        address = host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))
        _refuse_private(host, [str(ip_address(address))])
    except (OSError, UnicodeError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        if host.lower().rstrip(".") == "localhost":
            _refuse_private(host, ["127.0.0.1"])


def _refuse_private(host: str, addresses: list[str]) -> None:
    private = [address for address in addresses if not is_public(address)]
    if private:
        shown = host if host == private[0] else f"{host} ({private[0]})"
        raise BadImage(
            f"{shown} is in a private network, where data and requests must not lead. If you trust them, start the "
            f"program with {ALLOW_OPTION}, or ComfyUI with {ALLOW_VARIABLE}=1 in its environment"
        )


def _connect(url: str, place: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """Connect as `socket.create_connection` does, to addresses that were checked. Raises BadImage naming `url`."""
    host, port = place
    try:
        addresses = public_addresses(host, port)
    except BadImage as error:
        raise BadImage(f"{url}: {error}") from None
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout, source_address)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout, source_address)


def _checks_proxied(request: urllib.request.Request) -> bool:
    """Tell whether a proxy connects for a request; if so, check the host as far as it has addresses here.

    The proxy is the user's own choice and may be private; it resolves names itself, some of which it alone knows.
    """
    if not (request.has_proxy() or getattr(request, "_tunnel_host", None)):
        return False
    try:
        public_addresses(urlsplit(request.full_url).hostname or "", 0)
    except BadImage as error:
        raise BadImage(f"{request.full_url}: {error}") from None
    except OSError:
        pass
    return True


def _connection(
    kind: Callable[..., http.client.HTTPConnection], url: str, *arguments: Any, **options: Any
) -> http.client.HTTPConnection:
    connection = kind(*arguments, **options)
    # The library has no public way to choose the address; the name stays, which TLS verifies.
    connect = partial(_connect, url)
    connection._create_connection = connect  # pyright: ignore[reportAttributeAccessIssue] in every Python 3
    return connection


class CheckedHTTPHandler(urllib.request.HTTPHandler):
    """Opens http URLs at checked addresses."""

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open a URL. Raises BadImage for a private host."""
        if _checks_proxied(req):
            return super().http_open(req)
        return self.do_open(partial(_connection, http.client.HTTPConnection, req.full_url), req)


class CheckedHTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https URLs at checked addresses."""

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open a URL. Raises BadImage for a private host."""
        if _checks_proxied(req):
            return super().https_open(req)
        return self.do_open(partial(_connection, http.client.HTTPSConnection, req.full_url), req)
