"""A real ComfyUI server in a subprocess, driven over HTTP and websocket as its page does it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

PACK = Path(__file__).resolve().parents[2]
START_SECONDS = 300
RUN_SECONDS = 600


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, else the installation around this pack, else comfy-cli's usual place."""
    places = (
        [Path(path)] if (path := os.environ.get("COMFYUI_PATH")) else [PACK.parents[1], Path.home() / "comfy/ComfyUI"]
    )
    return next((place for place in places if (place / "comfy" / "model_management.py").is_file()), None)


def version_of(comfyui: Path) -> tuple[int, ...]:
    """ComfyUI's version."""
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    return tuple(map(int, re.findall(r'"([\d.]+)"', text)[0].split(".")))


def find_python(comfyui: Path) -> str:
    """COMFYUI_PYTHON, else ComfyUI's own virtual environment, else the interpreter of the tests."""
    if path := os.environ.get("COMFYUI_PYTHON"):
        return path
    names = [f"{venv}/{binary}" for venv in (".venv", "venv") for binary in ("bin/python", "Scripts/python.exe")]
    return next((str(comfyui / name) for name in names if (comfyui / name).is_file()), sys.executable)


@dataclass
class Result:
    """What became of one queued prompt."""

    status: str
    """`execution_success`, `execution_error` or `execution_interrupted`."""
    details: dict[str, Any]
    """Of the error or the interruption."""
    messages: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """Arrival time in seconds, type and data of every JSON message."""
    texts: list[str] = field(default_factory=list)
    """The nodes' lines of progress text."""
    previews: int = 0
    """How many preview images came."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """What the history says of each node."""

    def executed(self) -> set[str]:
        """The nodes that ran, and were not taken from ComfyUI's cache."""
        return {data["node"] for _, kind, data in self.messages if kind == "executing" and data["node"]}

    def events(self) -> list[dict[str, Any]]:
        """The pack's own messages."""
        return [data for _, kind, data in self.messages if kind == "edit_trainer.run"]

    def text(self, node: str) -> str:
        """The text that an output node shows when it is done."""
        return self.outputs[node]["text"][0]


class Server:
    """One server with a base folder of its own."""

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        *packs: Path,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self.output = base / "output"
        for folder in ("custom_nodes", "user", "input", "output"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        for pack in (PACK, *packs):
            (base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = base / "server.log"
        command = [find_python(comfyui), str(comfyui / "main.py"), "--cpu", "--base-directory", str(base)]
        command += ["--port", str(self.port), "--database-url", f"sqlite:///{base / 'user' / 'db'}"]
        # What the server deletes is not for the bin of the person who runs the tests.
        environment = os.environ | {"XDG_DATA_HOME": str(base / "desktop")} | (variables or {})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--disable-api-nodes", *options],
                cwd=base,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        self.close()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str, **query: str | list[str]) -> Any:
        """Decoded JSON of an address of the server. Raises urllib.error.HTTPError."""
        address = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query, doseq=True)}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: dict[str, Any]) -> Any:
        """Decoded JSON of the answer, also of a refusal."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(data).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any], watch: Callable[[str, dict[str, Any]], None] | None = None) -> Result:
        """Queue a prompt in API format and wait for its end. `watch` sees every JSON message on the way."""
        client = uuid.uuid4().hex
        messages: list[tuple[float, str, dict[str, Any]]] = []
        texts: list[str] = []
        previews = 0
        page = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=RUN_SECONDS)
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            if "prompt_id" not in answer:
                return Result("refused", answer)
            while True:
                message = page.recv()
                if isinstance(message, bytes):
                    kind = int.from_bytes(message[:4], "big")
                    if kind == 3:
                        length = int.from_bytes(message[4:8], "big")
                        texts.append(message[8 + length :].decode())
                    previews += kind in (1, 2, 4)
                    continue
                decoded = json.loads(message)
                kind, data = decoded["type"], decoded["data"]
                messages.append((time.monotonic(), kind, data))
                if watch:
                    watch(kind, data)
                ended = kind in ("execution_success", "execution_error", "execution_interrupted")
                if ended and data["prompt_id"] == answer["prompt_id"]:
                    break
        finally:
            page.close()
        history = self._history(answer["prompt_id"])
        return Result(kind, data, messages, texts, previews, history["outputs"])

    def _history(self, prompt_id: str) -> dict[str, Any]:
        while not (history := self.get(f"/history/{prompt_id}")):
            time.sleep(0.05)
        return history[prompt_id]

    def interrupt(self) -> None:
        """Press Cancel."""
        self.post("/interrupt", {})

    def memory(self) -> int:
        """Resident memory of the server in bytes (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def transformer_folder(server: Server) -> Iterator[Path]:
    """Context with a server's models/diffusion_models, which is emptied at the end."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for file in folder.iterdir():
            file.unlink()
