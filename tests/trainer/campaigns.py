"""Campaigns against the command line, many times over: signals at random moments of every phase, pairs of processes
that start at once in one folder, and files of a run and its cache that are changed at random.

By hand, `python -m tests.trainer.campaigns` with `kills --moments 60`, `pairs --pairs 20` or `damage --minutes 10`
prints a line for each attempt and the counts; the exit code is 1 when one of them failed. The suite runs a few of each.
One process imports everything and forks a child for each run, because importing takes much longer than training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from trainer.cli.console import Console
from trainer.cli.main import main
from trainer.events import Progress, Step
from trainer.tiny.shapes import write_parquet
from trainer.training import loop

assert loop  # imported before the fork

PHASES = ("checking", "loading", "caching", "training", "sampling", "saving")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
STEPS = 4
IN_USE, RUNNING = 2, 0
MOST_MEMORY, MOST_SECONDS = 2**30, 60.0
"""Bytes above a sound run and seconds that damage may cost, on a busy machine too; idle, a run takes a second."""


def write_request(folder: Path, name: str, base_model: str, **params: Any) -> Path:
    """A request of few steps, with samples and checkpoints on the way; its dataset is shared."""
    parquet = folder / "frame.parquet"
    if not parquet.exists():
        write_parquet(parquet, ["frame"], 1, 5)
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    sample = {"ctrl_img_url": "", "prompt": "add a red frame"}
    common = {"steps": STEPS, "sample_every": 2, "samples": [sample], "lora_rank": 2, "lora_alpha": 2}
    common |= {"cache_text_embeddings": base_model.endswith("kontext"), "sample_width": 64, "sample_height": 64}
    request = {"resource": str(parquet), "base_model": base_model, "script_type": "image_editing"}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(request | {"training_params": columns | common | params}))
    return path


@dataclass
class Child:
    """A forked `train`, its output, and a pipe that names the phase of each event."""

    pid: int
    output: Path
    phases: int

    peak: int = 0
    """Most resident memory, in bytes, once it has ended."""

    def end(self) -> tuple[int, str]:
        """Wait for its end; the exit code, as a shell has it, and what it printed."""
        _, status, usage = os.wait4(self.pid, 0)
        self.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        code = os.waitstatus_to_exitcode(status)
        os.close(self.phases)
        return code if code >= 0 else 128 - code, self.output.read_text(errors="replace")

    def wait_for(self, phase: str, count: int) -> None:
        """Wait for the `count`-th event of a phase, or for the end."""
        with os.fdopen(os.dup(self.phases), encoding="utf-8") as lines:
            for line in lines:
                count -= line.strip() == phase
                if count <= 0:
                    return


def start(request: Path, out: Path, cache: Path, go: int | None = None) -> Child:
    """Fork a child that trains; with `go` it waits until that pipe is closed."""
    reading, writing = os.pipe()
    out.parent.mkdir(parents=True, exist_ok=True)
    output = out.with_name(f"{out.name}-{time.monotonic_ns()}.txt")
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, output, reading)
    try:
        os.close(reading)
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        for number in SIGNALS[1:]:
            signal.signal(number, signal.SIG_DFL)  # Under nohup SIGHUP is ignored, and `train` leaves it so.
        real = Console.show

        def show(console: Console, event: Any) -> None:
            phase = event.phase if isinstance(event, Progress) else "training" if isinstance(event, Step) else ""
            os.write(writing, f"{phase}\n".encode())
            real(console, event)

        Console.show = show
        if go is not None:
            os.read(go, 1)
        arguments = ["--out", str(out), "--cache", str(cache), "--sample-steps", "2", "--checkpoint-every", "3"]
        os._exit(main(["train", str(request), *arguments]))
    except BaseException as error:
        os.write(2, f"failed: {error!r}\n".encode())
        os._exit(99)


def outcome(run: Path) -> tuple[bytes, list[tuple[int, float]]]:
    """Weights and losses of a finished run."""
    (weights,) = run.glob("*.safetensors")
    return weights.read_bytes(), logged(run)


def logged(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every whole step line in the log."""
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
    entries = [json.loads(line) for line in lines]
    return [(entry["step"], entry["loss"]) for entry in entries if entry["event"] == "step"]


def alone(request: Path, folder: Path, cache: Path) -> tuple[bytes, list[tuple[int, float]]]:
    """Outcome of a run that nothing disturbs."""
    code, printed = start(request, folder, cache).end()
    assert code == 0, printed
    return outcome(folder)


def kill(request: Path, folder: Path, expected: Any, phase: str, number: int, chance: random.Random) -> list[str]:
    """Signal a run at a random moment of a phase and resume it; returns what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    run, cache = folder / "run", folder / "cache"
    folder.mkdir(parents=True)
    child = start(request, run, cache)
    child.wait_for(phase, chance.randint(1, 6))
    time.sleep(chance.random() * 0.05)
    finished = len(logged(run))
    os.kill(child.pid, number)
    code, printed = child.end()
    wrong = []
    if code not in (0, 128 + number):
        wrong.append(f"exit code {code}")
    resumed, more = start(request, run, cache).end()
    if resumed != 0:
        return [*wrong, f"the resume ended with {resumed}: {more}"]
    first = re.search(r"Continuing from step (\d+)", more)
    first_step = int(first[1]) if first else STEPS if "Done after" in more and "Run folder" not in more else 0
    if number != signal.SIGKILL and first_step < finished:
        wrong.append(f"{finished} steps were finished, {first_step} were left: {printed}{more}")
    if outcome(run) != expected:
        wrong.append("other weights or losses than undisturbed")
    if "Traceback" in printed + more:
        wrong.append(f"a traceback: {printed}{more}")
    if left := [path.name for path in run.rglob(".writing-*")]:
        wrong.append(f"left {left}")
    return wrong


def kills(folder: Path, moments: int, seed: int, base_models: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Kill runs at `moments` random moments of every phase, the signals in turn; yields each attempt and its faults."""
    chance = random.Random(seed)
    expected = {}
    for base_model in base_models:
        request = write_request(folder, base_model.rpartition("/")[2], base_model)
        expected[request] = alone(request, folder / "alone" / request.stem / "run", folder / "alone" / "cache")
    requests = list(expected)
    for moment in range(moments):
        for index, phase in enumerate(PHASES):
            number, request = SIGNALS[(moment + index) % len(SIGNALS)], requests[moment % len(requests)]
            wrong = kill(request, folder / "killed", expected[request], phase, number, chance)
            yield f"{phase} {signal.Signals(number).name} {request.stem}", wrong


def pair(folder: Path, requests: tuple[Path, Path], expected: dict[Path, Any]) -> list[str]:
    """Start two processes at once in one folder; returns what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reading, writing = os.pipe()
    children = [start(request, folder / "run", folder / "cache", go=reading) for request in requests]
    os.write(writing, b"go")
    ends = [child.end() for child in children]
    os.close(reading)
    os.close(writing)
    if sorted(code for code, _ in ends) != [RUNNING, IN_USE]:
        return [f"exit codes {[code for code, _ in ends]}: {ends}"]
    winner = next(index for index, (code, _) in enumerate(ends) if code == RUNNING)
    wrong, said = [], ends[1 - winner][1]
    if not re.search(rf"^error: .*run is in use: process {children[winner].pid} on .*$", said, re.MULTILINE):
        wrong.append(f"the other one said: {said}")
    request = requests[winner]
    if request not in expected:
        expected[request] = alone(request, folder / "alone" / "run", folder / "alone" / "cache")
        shutil.rmtree(folder / "alone")
    if outcome(folder / "run") != expected[request]:
        wrong.append("other weights or losses than alone")
    if sorted(path.name for path in folder.iterdir() if path.suffix != ".txt") != ["cache", "run"]:
        wrong.append("more than one run folder")
    return wrong


def pairs(folder: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Start pairs of processes, with the same request and with different ones in turn."""
    one = write_request(folder, "one", "tiny/flux-kontext", steps=16, sample_every=16)
    two = write_request(folder, "two", "tiny/flux-kontext", steps=16, sample_every=16, learning_rate=0.002)
    expected: dict[Path, Any] = {}
    for number in range(count):
        requests = (one, two) if number % 2 else (one, one)
        yield (
            f"pair {number + 1} of {'different' if number % 2 else 'equal'} requests",
            pair(folder / "pair", requests, expected),
        )


CONTENTS = (b"", b"null", b"[]", b"{}", b"1e999", b'"x"', b"[" * 50_000, b"\xff" * 64, b"9" * 5000, b"\0" * 4096)
"""Contents that parsers are tried with."""


def change(file: Path, others: list[Path], chance: random.Random) -> str:
    """Change a file at random; returns how."""
    data = bytearray(file.read_bytes())
    place, length = chance.randrange(len(data) + 1), chance.randint(1, 64)
    way = chance.choice(("bit", "bits", "cut", "grow", "bytes", "repeat", "content", "other", "gone", "number"))
    if way in ("bit", "bits") and data:
        for _ in range(1 if way == "bit" else length):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[place:]
    elif way == "grow":
        data += chance.randbytes(length)
    elif way == "bytes":
        data[place : place + length] = chance.randbytes(length)
    elif way == "repeat":
        data[place:place] = data[place : place + length] * 9
    elif way == "number":
        numbers = (b"-1", b"1e400", b"99999999999999999999", b"0.5", b"NaN", b"true", b'"1"', b"null")
        data = bytearray(re.sub(rb"\d+", lambda found: chance.choice((found[0], *numbers)), bytes(data), count=40))
    elif way == "content":
        data = bytearray(chance.choice(CONTENTS))
    elif way == "other":
        data = bytearray(chance.choice(others).read_bytes())
    if way == "gone":
        file.unlink()
    else:
        file.write_bytes(data)
    return way


def damage(folder: Path, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Change a file of a run or of its cache and extend the run, without end; yields each attempt and its faults."""
    chance = random.Random(seed)
    request = write_request(folder, "short", "tiny/flux-kontext", steps=2)
    longer = write_request(folder, "long", "tiny/flux-kontext")
    healthy, kept_cache, run, cache = (folder / name for name in ("healthy", "kept-cache", "damaged", "cache"))
    sound = start(request, healthy, kept_cache)
    assert sound.end()[0] == 0
    expected = alone(longer, folder / "longer", kept_cache)
    files = {path: path.read_bytes() for path in healthy.rglob("*") if path.is_file()}
    while True:
        for place in (run, cache, *folder.glob("damaged-*[0-9]")):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(healthy, run)
        shutil.copytree(kept_cache, cache)
        candidates = sorted(path for place in (run, cache) for path in place.rglob("*") if path.is_file())
        file = chance.choice(candidates)
        attempt = f"{change(file, candidates, chance)} {file.relative_to(folder)}"
        begun = time.monotonic()
        child = start(longer, run, cache)
        code, printed = child.end()
        wrong = []
        if code not in (0, 1, 2) or "Traceback" in printed:
            wrong.append(f"exit code {code}: {printed}")
        if child.peak - sound.peak > MOST_MEMORY:
            wrong.append(f"{(child.peak - sound.peak) >> 20} MiB more than without damage")
        if time.monotonic() - begun > MOST_SECONDS:
            wrong.append(f"{time.monotonic() - begun:.0f} s")
        if not all(path.read_bytes() == data for path, data in files.items()):
            wrong.append("the run beside has changed")
        weights = run / f"damaged-{STEPS:06d}.safetensors"
        if code == 0 and weights.is_file() and weights.read_bytes() != expected[0]:
            wrong.append(f"other weights than undisturbed: {printed}")
        yield attempt, wrong


def main_script() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=("kills", "pairs", "damage"))
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name), time.monotonic() + 60 * options.minutes
        base_models = ("tiny/flux-kontext", "tiny/qwen-image-edit")
        attempts = {
            "kills": lambda: kills(folder, options.moments, options.seed, base_models),
            "pairs": lambda: pairs(folder, options.pairs),
            "damage": lambda: takewhile(lambda _: time.monotonic() < end, damage(folder, options.seed)),
        }[options.campaign]
        for attempt, wrong in attempts():
            counts["failed" if wrong else "passed"] += 1
            print(f"{attempt}: {'; '.join(wrong) or 'passed'}", flush=True)
    print(dict(counts))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main_script())
