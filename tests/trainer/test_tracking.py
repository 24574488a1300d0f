"""TensorBoard and Weights & Biases: what their own readers find, and who can start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.cli.main import main
from trainer.config.request import parse_request
from trainer.config.settings import RunSettings, parse_settings
from trainer.errors import BadInput
from trainer.events import Event, Notice, Sample, Started, Step
from trainer.tiny.requests import make_request
from trainer.tiny.shapes import write_parquet
from trainer.tracking.trackers import VARIABLE, open_trackers, tracked
from trainer.training.run_log import read_log

from .processes import start_script

STEPS = 60
PROMPT = "add a red frame"
NUMBERS = {"train/loss", "train/loss_smoothed", "train/learning_rate", "train/grad_norm", "train/seconds_per_step"}


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    """A request of STEPS steps that samples at half of them."""
    (tmp_path / "private folder").mkdir()
    parquet = write_parquet(tmp_path / "private folder" / "frame.parquet", ["frame"], 1, 4)
    samples = [{"ctrl_img_url": "", "prompt": PROMPT}]
    params = {"steps": STEPS, "sample_every": STEPS // 2, "samples": samples, "batch_size": 1}
    path = tmp_path / "frame.json"
    path.write_text(json.dumps(make_request("tiny/flux-kontext", parquet, params)))
    return path


def killed_after(step: int, *arguments: object) -> None:
    """Start a training and kill it once it has logged a step."""
    log = Path(arguments[arguments.index("--out") + 1]) / "log.jsonl"
    script = start_script("trainer", *arguments)
    while script.process.is_alive() and not any(line["step"] >= step for line in read_log(log)[0]):
        time.sleep(0.02)
    assert script.process.is_alive(), script.wait()
    os.kill(script.process.pid, signal.SIGKILL)
    script.process.join()


def read_events(folder: Path) -> Any:
    """The event files of a folder, as TensorBoard reads them, with every image."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    reader.Reload()
    return reader


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_a_kill(request_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train", request_file, "--out", run, "--sample-steps", 1, "--checkpoint-every", 20)
    killed_after(25, *arguments, "--log-with", "tensorboard")
    begun = read_events(run / "tensorboard").Scalars("train/loss")
    assert begun[-1].step > 20, "it had logged steps that no checkpoint has"
    code, output, errors = start_script("trainer", *arguments, "--tensorboard", "true").wait()
    assert code == 0, output + errors
    assert "Continuing from step 20" in output

    reader = read_events(run / "tensorboard")
    assert set(reader.Tags()["scalars"]) == NUMBERS
    logged = {line["step"]: line for line in read_log(run / "log.jsonl")[0] if line["event"] == "step"}
    for name, key in (("loss", "loss"), ("learning_rate", "learning_rate"), ("seconds_per_step", "seconds")):
        found = [(event.step, event.value) for event in reader.Scalars(f"train/{name}")]
        assert [step for step, _ in found] == list(range(1, STEPS + 1))
        assert [value for _, value in found] == pytest.approx([logged[step][key] for step, _ in found], rel=1e-6)
    smoothed = [event.value for event in reader.Scalars("train/loss_smoothed")]
    assert smoothed[0] == pytest.approx(logged[1]["loss"])
    assert abs(smoothed[20] - smoothed[19]) < abs(logged[21]["loss"] - smoothed[19]) / 3, "goes on after resuming"
    (tag,) = reader.Tags()["images"]
    assert tag == f"samples/00: {PROMPT}"
    images = reader.Images(tag)
    assert [image.step for image in images] == [0, STEPS // 2, STEPS]
    assert (images[0].width, images[0].height) == (64, 64)
    hparams = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"learning_rate" in hparams and b"frame.parquet" in hparams
    assert b"private folder" not in hparams
    assert {path.name for path in run.iterdir()} >= {"tensorboard"}


@pytest.mark.parametrize(
    ("package", "options", "asked"),
    [
        ("tensorboard", ["--log-with", "tensorboard"], "--log-with tensorboard"),
        ("tensorboard", ["--tensorboard", "true"], "The setting tensorboard"),
        ("wandb", ["--log-with", "wandb"], "--log-with wandb"),
        ("wandb", [], "EDIT_TRAINER_LOG_WITH=wandb"),
    ],
)
def test_a_missing_package_is_one_message(
    package: str,
    options: list[str],
    asked: str,
    request_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if not options:
        monkeypatch.setenv(VARIABLE, package)
    assert main(["train", str(request_file), "--out", str(tmp_path / "run"), *options]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith(f"error: {asked} needs the package {package}, which is not installed.")
    assert f'`python -m pip install "{package}>=' in errors
    assert errors.count("\n") == 1
    assert output == "" and not (tmp_path / "run").exists(), "before anything is loaded"


def test_an_unknown_choice_is_refused(request_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(request_file), "--log-with", "mlflow"]) == 2
    assert capsys.readouterr().err == "error: --log-with mlflow: it can be tensorboard, wandb, all.\n"


@pytest.mark.parametrize("name", ["log_with", "wandb", "report_to"])
def test_neither_settings_nor_a_request_can_ask_for_wandb(name: str, request_file: Path) -> None:
    with pytest.raises(BadInput, match="unknown field"):
        parse_settings({name: "wandb"})
    request = json.loads(request_file.read_text())
    for place in (request, request["training_params"]):
        with pytest.raises(BadInput, match="unknown field"):
            place[name] = "wandb"
            parse_request(request)
        del place[name]
    texts = {name: "wandb" for name, field in RunSettings.model_fields.items() if field.annotation is str}
    on = {name: True for name, field in RunSettings.model_fields.items() if field.annotation is bool}
    assert [tracker.name for tracker in open_trackers(parse_settings(texts | on))] == ["TensorBoard"]
    assert open_trackers(RunSettings()) == []


def some_events(folder: Path) -> Iterator[Event]:
    yield Started(run_dir=folder, first_step=0, steps=3, examples=1, trainable_parameters=1, resumed_from=None)
    image = Image.new("RGB", (8, 8), "red")
    yield Sample(step=0, index=0, prompt=PROMPT, image=image, controls=(), path=folder / "step-000000-00.png")
    for step in (1, 2, 3):
        yield Step(step=step, steps=3, loss=float(step), learning_rate=1e-4, grad_norm=1.0, seconds=0.5)


class Broken:
    """A tracker that fails at the second step."""

    name = "Broken"

    def __init__(self) -> None:
        self.steps: list[int] = []

    def start(self, *_: object) -> None: ...

    def log_sample(self, sample: Sample) -> None: ...

    def close(self, failed: bool) -> None: ...

    def log_step(self, step: int, values: object) -> None:
        if step == 2:
            raise OSError("the disk is full")
        self.steps.append(step)


def test_a_tracker_that_fails_does_not_end_the_run(request_file: Path, tmp_path: Path) -> None:
    broken, request = Broken(), parse_request(request_file.read_text())
    events = list(tracked(some_events(tmp_path), [broken], request, RunSettings()))
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3]
    (notice,) = (event.message for event in events if isinstance(event, Notice))
    assert notice == "Broken failed, and logs no more of this run: the disk is full"
    assert broken.steps == [1]


@pytest.mark.slow
def test_wandb_offline_writes_files_and_sends_nothing(
    request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "netrc").touch()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(BadInput, match="needs a login at Weights & Biases: run `wandb login`"):
            open_trackers(RunSettings(), "wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        import wandb

        wandb.teardown()  # The mode is read once a process.
        settings = parse_settings({"images_root": str(tmp_path / "private folder")})
        request = parse_request(request_file.read_text())
        for _ in range(2):
            list(tracked(some_events(run), open_trackers(settings, "wandb"), request, settings))
        wandb.teardown()
        with pytest.raises(BlockingIOError):
            server.accept()  # Nobody has connected.
    logs = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 2 and logs[0].name == logs[1].name, "one run, that goes on"
    content = b"".join(log.read_bytes() for log in logs)
    for text in (PROMPT, "train/loss_smoothed", "train/learning_rate", "frame.parquet", "edit-trainer"):
        assert text.encode() in content, text
    for text in ("private folder", str(tmp_path), str(Path.cwd())):
        assert text.encode() not in content, text
    assert list((run / "wandb").glob("offline-run-*/files/media/images/samples/*.png"))
