"""A Hugging Face hub on this machine, which huggingface_hub's own client pushes to."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from .local_server import serving

TOKEN, READ_TOKEN = "hf_writes", "hf_reads"
OWNER = "tester"


@dataclass
class HubRepo:
    """One repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    tags: list[str] = field(default_factory=list)
    commits: int = 0


@dataclass
class HubServer:
    """The hub of one user."""

    url: str
    repos: dict[str, HubRepo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    broken: bool = False
    """True: every request fails with status 503."""

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables of a process that takes this for the hub."""
        # Xet needs a server of its own; without it the client sends large files by Git LFS.
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}
        return variables | ({"HF_TOKEN": token} if token else {})

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of one request."""
        if self.broken:
            return 503, {"error": "down for maintenance"}
        if method == "PUT" and (found := re.fullmatch(r"/lfs/(\w+)", path)):
            self.objects[found[1]] = body
            return 200, {}
        if token not in (TOKEN, READ_TOKEN):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(token, json.loads(body))
        if found := re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?", path):
            return self._repo(found[1], found[2] or "", token, body)
        return 404, {"error": "Not found"}

    def _create(self, token: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if token == READ_TOKEN or asked["organization"] != OWNER:
            return 403, {"error": "You don't have the rights to create a model under the namespace"}
        name = f"{OWNER}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo"}
        self.repos[name] = HubRepo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, {"url": f"{self.url}/{name}"}

    def _repo(self, name: str, action: str, token: str, body: bytes) -> tuple[int, Any]:
        repo = self.repos.get(name)
        if repo is None:
            return 404, {"error": "Repository not found"}
        if not action:
            siblings = [{"rfilename": file} for file in repo.files]
            return 200, {"id": name, "modelId": name, "private": repo.private, "tags": repo.tags, "siblings": siblings}
        if token == READ_TOKEN or not name.startswith(f"{OWNER}/"):
            return 403, {"error": "You don't have write access"}
        if action == "/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": file, "uploadMode": _mode(file), "shouldIgnore": False} for file in files]}
        if action == "/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._upload(entry) for entry in objects]}
        if action == "/commit/main":
            return self._commit(name, repo, body)
        return 404, {"error": "Not found"}

    def _upload(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "actions": {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}}}

    def _commit(self, name: str, repo: HubRepo, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.objects[value["oid"]]
        repo.commits += 1
        repo.tags = re.findall(r"^- (\S+)$", repo.files["README.md"].decode(), re.MULTILINE)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{repo.commits:040x}", "commitOid": f"{repo.commits:040x}"}


def _mode(file: str) -> str:
    return "lfs" if file.endswith((".safetensors", ".png")) else "regular"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub on a free port of this machine, for the time of the `with`."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {self.path}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, answer = hub.answer(self.command, self.path.partition("?")[0], token, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            if status >= 400:
                self.send_header("X-Error-Message", answer["error"])
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        hub = HubServer(url)
        yield hub
