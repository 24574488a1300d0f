"""A run that is told to end, by Ctrl-C, a container, or a closed terminal, saves its last finished step."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.cli import stopping
from trainer.events import RunControl

from .processes import start_script

STEPS = 12

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")


@pytest.fixture
def request_file(runs) -> Path:
    runs.write()
    columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
    params = {"steps": STEPS, "sample_every": STEPS, "samples": [], "lora_rank": 4}
    request = {"resource": str(runs.parquet), "base_model": "tiny/flux-kontext", "script_type": "image_editing"}
    path = runs.folder / "request.json"
    path.write_text(json.dumps(request | {"training_params": columns | params}))
    return path


def signalled(request: Path, folder: Path, *signals: int) -> tuple[list[int], str]:
    """The exit codes of the runs, and what they printed."""
    code, stdout, stderr = start_script("tests.trainer.signalled_run", request, folder, *map(int, signals)).wait()
    assert code == 0, stderr
    return json.loads(stdout.splitlines()[-1]), stdout + stderr


@pytest.mark.slow
def test_nothing_finished_is_lost(request_file: Path, runs) -> None:
    codes, printed = signalled(request_file, runs.folder / "stopped", signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    assert codes == [143, 129, 130, 0], printed
    assert "Traceback" not in printed
    saved = [int(step) for step in re.findall(r"Stopped after step (\d+) of 12, which is saved", printed)]
    assert len(saved) == 3 and saved == sorted(set(saved)), printed
    assert [int(step) for step in re.findall(r"Continuing from step (\d+) ", printed)] == saved
    codes, printed = signalled(request_file, runs.folder / "undisturbed")
    assert codes == [0], printed
    names = (f"stopped-{STEPS:06d}.safetensors", f"undisturbed-{STEPS:06d}.safetensors")
    stopped, undisturbed = ((runs.folder / name.split("-")[0] / name).read_bytes() for name in names)
    assert stopped == undisturbed
    assert runs.losses("stopped") == runs.losses("undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_silent_server_does_not_keep_the_process(number: int, request_file: Path, runs) -> None:
    """Threads wait for an answer that never comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/picture.png"
        table = pa.table({"words": ["a"] * 4, "before": [address] * 4, "after": [address] * 4})
        pq.write_table(table, runs.parquet)
        script = start_script("trainer", "train", request_file, "--out", runs.folder / "run")
        server.settimeout(60)
        connection, _ = server.accept()
        with connection:
            os.kill(script.process.pid or 0, number)
            sent = time.monotonic()
            code, *printed = script.wait(60)
            took = time.monotonic() - sent
    assert code == 128 + number, printed
    assert took < stopping.SECONDS_TO_END + 2, printed
    assert not any("Traceback" in text for text in printed)


def test_an_ignored_signal_stays_ignored() -> None:
    """nohup starts a command with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.stop_signals(RunControl(), prints=False, world_size=1):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
