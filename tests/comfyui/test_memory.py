"""What a server holds after many trainings that were cancelled."""

from __future__ import annotations

import sys

import pytest

from .graphs import training
from .server import Server

CYCLES = 20
ALLOWED = 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory from /proc")
def test_twenty_cancelled_trainings_leave_nothing_behind(server: Server) -> None:
    sizes = []
    for cycle in range(CYCLES):
        cancelled = []

        def cancel(kind: str, data: dict, cancelled: list = cancelled) -> None:
            if kind == "edit_trainer.run" and data["points"] and not cancelled:
                cancelled.append(data["step"])
                server.interrupt()

        family = ("tiny/flux-kontext", "tiny/qwen-image-edit")[cycle % 2]
        prompt = training(family, f"cycle-{cycle}", params={"steps": 1000, "sample_every": 1000})
        assert server.run(prompt, cancel).status == "execution_interrupted"
        sizes.append(server.memory())
    assert sizes[-1] - sizes[1] < ALLOWED, [size >> 20 for size in sizes]
