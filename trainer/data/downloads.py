"""Images behind http(s) URLs: downloaded once per run, stored on disk, revalidated by the next run."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from ..errors import BadImage, RunFailed
from ..files import atomic_write
from .hosts import CheckedHTTPHandler, CheckedHTTPSHandler

USER_AGENT = "edit-trainer (training images; Python urllib)"


MAX_REDIRECTS = 5
"""A judgement: image hosts use one or two."""


CHUNK = 1 << 16
"""Bytes per read; a judgement: small enough that the deadline is checked often."""


SILENT_AFTER = 3
"""Consecutive failures after which a server is given up for this run; a judgement."""


class Downloads:
    """Downloaded images of one run. Thread-safe.

    A stored image is reused only after the server confirms it (ETag, Last-Modified). A server that cannot be reached
    is an error: training never uses images that may be out of date. `hosts.py` says which servers are asked.
    """

    def __init__(self, folder: Path | None = None, *, timeout: float = 10.0, deadline: float = 30.0) -> None:
        """`folder` stores images between runs; None uses a temporary folder that goes with this object.

        `timeout` bounds the silence while connecting and reading, `deadline` a complete download, both in seconds.
        """
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="edit-trainer-")
            folder = Path(self._temporary.name)
        self.folder = folder
        self.timeout = timeout
        self.deadline = deadline
        self._outcome: dict[bytes, str] = {}
        self._silent: dict[str, int] = {}
        self._locks = [threading.Lock() for _ in range(64)]
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            CheckedHTTPHandler(),
            CheckedHTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):
            self._opener.add_handler(handler)

    def fetch(self, url: str, limit: int) -> bytes:
        """Download a URL, or read its stored copy; at most `limit` bytes.

        Raises BadImage when the download fails, takes too long or is too large, and RunFailed when it cannot be stored.
        """
        digest = hashlib.sha256(url.encode("utf-8", "surrogatepass"))
        key, path = digest.digest(), self.folder / digest.hexdigest()
        with self._locks[key[0] % len(self._locks)]:
            if key not in self._outcome:
                try:
                    body = self._revalidate(url, path, limit)
                    self._outcome[key] = ""
                    return body
                except BadImage as error:
                    self._outcome[key] = str(error)
            if fault := self._outcome[key]:
                raise BadImage(fault)
            stored = _read_stored(path)
        if stored is None:
            raise RunFailed(f"{path}, the stored copy of {url}, was removed or damaged during the run.")
        return stored[1]

    def _revalidate(self, url: str, path: Path, limit: int) -> bytes:
        try:
            address = _ascii_url(url)
        except ValueError as error:
            raise BadImage(f"{url}: not a valid URL ({error})") from None
        host = urlsplit(address).netloc
        if self._silent.get(host, 0) >= SILENT_AFTER:
            raise BadImage(f"{url}: {host} did not answer {SILENT_AFTER} times in a row and is skipped from now on")
        stored = _read_stored(path)
        try:
            answer = self._within_deadline(address, stored[0] if stored else {}, limit)
        except BadImage:
            raise
        except urllib.error.HTTPError as error:
            self._silent[host] = 0
            reason = " ".join(str(error.reason).split())
            raise BadImage(f"{url}: the server answers {error.code} {reason}") from None
        except (TimeoutError, concurrent.futures.TimeoutError):
            self._silent[host] = self._silent.get(host, 0) + 1
            raise BadImage(f"{url}: the server did not deliver within {self.deadline:g} seconds") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, OSError):
                self._silent[host] = self._silent.get(host, 0) + 1
            raise BadImage(f"{url}: cannot be fetched ({reason})") from None
        self._silent[host] = 0
        if answer is None:
            assert stored is not None  # only its validators get a 304
            return stored[1]
        header, body = answer
        _store(path, {"url": url, **header}, body)
        return body

    def _within_deadline(self, address: str, known: dict[str, Any], limit: int) -> tuple[dict[str, Any], bytes] | None:
        """Run `_get` in a thread of its own, as urllib has no deadline for name lookup and slow headers.

        The thread ends by itself at the next time-out or, while it reads the body, at the deadline.
        """
        result: concurrent.futures.Future = concurrent.futures.Future()

        def work() -> None:
            try:
                result.set_result(self._get(address, known, limit))
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=work, name="edit-trainer-download", daemon=True).start()
        return result.result(timeout=self.deadline)

    def _get(self, address: str, known: dict[str, Any], limit: int) -> tuple[dict[str, Any], bytes] | None:
        """Validators and body, or None when the server confirms the stored copy (304)."""
        end = time.monotonic() + self.deadline
        headers = {"User-Agent": USER_AGENT, "Accept": "image/*, */*;q=0.5"}
        if known.get("etag"):
            headers["If-None-Match"] = known["etag"]
        if known.get("last_modified"):
            headers["If-Modified-Since"] = known["last_modified"]
        try:
            response = self._opener.open(urllib.request.Request(address, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and known:
                return None
            raise
        except urllib.error.URLError as error:
            raise error.reason if isinstance(error.reason, TimeoutError) else error from None
        with response:
            declared = response.headers.get("Content-Length", "")
            expected = int(declared) if declared.isdecimal() else None
            if expected is not None and expected > limit:
                raise _too_large(address, limit)
            body = bytearray()
            while chunk := response.read1(CHUNK):
                body += chunk
                if len(body) > limit:
                    raise _too_large(address, limit)
                if time.monotonic() > end:
                    raise TimeoutError
            if expected is not None and len(body) < expected:
                raise BadImage(f"{address}: the connection ended after {len(body)} of {expected} bytes")
            validators = {
                "etag": response.headers.get("ETag", ""),
                "last_modified": response.headers.get("Last-Modified", ""),
                "size": len(body),
            }
        return validators, bytes(body)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise BadImage(f"{req.full_url}: redirects to {newurl}; only http(s) is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _ascii_url(url: str) -> str:
    """Percent-encode spaces and letters outside ASCII. Raises ValueError."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path, query = (quote(text, safe="%/:=&?~+!$,;'@()*[]") for text in (parts.path, parts.query))
    return urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _too_large(address: str, limit: int) -> BadImage:
    return BadImage(f"{address}: is larger than {limit >> 20} MB")


def _read_stored(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Header and body of a stored image; None if it is missing or incomplete."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(head)
    except (OSError, ValueError):
        return None
    return (header, body) if isinstance(header, dict) and header.get("size") == len(body) else None


def _store(path: Path, header: dict[str, Any], body: bytes) -> None:
    """Write header and body to one file, so that validators always belong to the body."""
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)
