"""The first run after ComfyUI has started, while the page asks about models: both import diffusers."""

from __future__ import annotations

import threading
from pathlib import Path

from .graphs import training
from .server import Server


def test_the_page_asks_while_the_first_run_imports(comfyui: Path, tmp_path: Path) -> None:
    server = Server(comfyui, tmp_path)
    answers: list[dict[str, object]] = []

    def ask() -> None:
        answers.append(server.get("/edit_trainer/base_model", base_model="tiny/flux-kontext", transformer="auto"))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    try:
        for thread in asking:
            thread.start()
        assert server.run(training(run_name="first")).status == "execution_success"
        for thread in asking:
            thread.join()
    finally:
        server.close()
    assert len(answers) == 3 and answers[0] == answers[1] == answers[2]
    assert "ImportError" not in (tmp_path / "server.log").read_text(encoding="utf-8", errors="replace")
