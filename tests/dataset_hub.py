"""A Hugging Face hub of datasets on this machine: what the client asks for when it downloads files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import pytest

from .local_server import serving


@dataclass
class DatasetHub:
    """Data sets by name, each with its files by revision."""

    url: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    broken: bool = False
    """True: every request fails with status 503."""

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables of a process that takes this for the hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def downloads(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [path.rpartition("/")[2] for path in self.requests if path.startswith("GET") and "/resolve/" in path]

    def commit(self, repo: str, revision: str) -> str:
        """Hash of a revision, which its files decide."""
        files = self.repos[repo][revision]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


@contextmanager
def dataset_hub() -> Iterator[DatasetHub]:
    """A hub on a free port of this machine, for the time of the `with`."""
    hub = DatasetHub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if hub.broken:
                return self.answer(503, b"{}")
            if found := re.fullmatch(r"/api/datasets/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", path):
                repo, revision = found[1], unquote(found[2] or "main")
                if repo not in hub.repos:
                    return self.answer(404, b"{}", "X-Error-Code: RepoNotFound")
                if not (revision := known(repo, revision)):
                    return self.answer(404, b"{}", "X-Error-Code: RevisionNotFound")
                siblings = [{"rfilename": name} for name in hub.repos[repo][revision]]
                about = {"id": repo, "sha": hub.commit(repo, revision), "siblings": siblings}
                return self.answer(200, json.dumps(about).encode())
            if found := re.fullmatch(r"/datasets/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
                repo, revision, name = found[1], known(found[1], unquote(found[2])), unquote(found[3])
                data = hub.repos[repo][revision][name]
                etag = hashlib.sha256(data).hexdigest()
                return self.answer(200, data, f"X-Repo-Commit: {hub.commit(repo, revision)}", f'ETag: "{etag}"')
            return self.answer(404, b"{}")

        def answer(self, status: int, data: bytes, *headers: str) -> None:
            self.send_response(status)
            for header in headers:
                self.send_header(*header.split(": "))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    def known(repo: str, revision: str) -> str:
        revisions = hub.repos[repo]
        return next((name for name in revisions if revision in (name, hub.commit(repo, name))), "")

    with serving(Handler) as url:
        hub.url = url
        yield hub


def use_in_this_process(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Make the client in this process take it for the hub, with a cache of its own."""
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
