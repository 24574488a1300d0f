"""The command line as a person uses it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from trainer.cli.console import Console, Pace
from trainer.cli.contact_sheet import Panel, draw_contact_sheet
from trainer.cli.demo import psnr
from trainer.cli.main import main
from trainer.cli.parser import build_parser
from trainer.cli.settings_options import option_of, read_settings
from trainer.config.settings import RunSettings
from trainer.data.columns import guess_columns
from trainer.events import Step
from trainer.tiny.shapes import make_pair, write_parquet

from ..hosted_request import HOSTED, write_files
from .processes import start_script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    parquet = write_parquet(tmp_path / "frame.parquet", ["frame"], 1, 4)
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    params = {**columns, "steps": 3, "sample_every": 2, "samples": [{"ctrl_img_url": "", "prompt": "add a red frame"}]}
    request = {"resource": str(parquet), "base_model": "tiny/flux-kontext", "script_type": "image_editing"}
    path = tmp_path / "frame.json"
    path.write_text(json.dumps(request | {"training_params": params}))
    return path


def trainer(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", **options
    )


def steps_logged(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step"]


def test_help_is_quick_and_names_every_command() -> None:
    program = (
        "import sys; from trainer.cli.main import main; code = main(['--help']); "
        "assert not {'torch', 'diffusers', 'transformers', 'pyarrow'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("demo", "inspect", "train", "edit"):
        assert re.search(rf"^ +{command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["demo", "inspect", "train", "edit"])
def test_help_of_each_command_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    example = re.search(r"^example:\n  python -m trainer (.+)$", text, re.MULTILINE)
    assert example
    assert build_parser().parse_args(shlex.split(example[1])).prog.endswith(command)


@pytest.mark.parametrize("command", [["train", "request.json"], ["demo"]])
def test_every_setting_is_an_option(command: list[str]) -> None:
    other = {int: 7, float: 0.5, str: "folder", bool: True}
    for name, field in RunSettings.model_fields.items():
        choices = getattr(field.annotation, "__args__", None)
        value = choices[-1] if choices else other[field.annotation]
        options = build_parser().parse_args([*command, option_of(name), str(value)])
        assert read_settings(options) == RunSettings().model_copy(update={name: value})


def test_options_win_over_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"seed": 1, "sample_steps": 5}')
    options = build_parser().parse_args(["train", "request.json", "--settings", str(file), "--seed", "2"])
    assert read_settings(options, {"sample_steps": 9, "warmup_steps": 3}) == RunSettings(
        seed=2, sample_steps=5, warmup_steps=3
    )


@pytest.mark.slow
def test_train_stop_go_on_and_edit(request_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "frame"
    arguments = ("train", request_file, "--out", run, "--sample-steps", 2)
    with trainer(*arguments) as first:
        lines = []
        for line in first.stdout:
            lines.append(line)
            if line.startswith("Step 1 of 3"):
                first.send_signal(signal.SIGINT)
    output = "".join(lines)
    assert first.returncode == 130, output
    done = max(steps_logged(run))
    assert f"Stopped after step {done} of 3, which is saved. To resume:\n  python -m trainer train" in output
    assert "Traceback" not in output

    code, output, _ = start_script("trainer", *arguments).wait()
    assert code == 0, output
    assert f"Continuing from step {done}" in output
    assert steps_logged(run) == [1, 2, 3]
    lora = run / "frame-000003.safetensors"
    assert str(lora) in output
    assert (tmp_path / "runs" / "edit_trainer_cache").is_dir()

    picture, edited = tmp_path / "in.png", tmp_path / "new folder" / "out.png"
    make_pair("frame", 2, 0).control.save(picture)
    base = ["edit", "--base-model", "tiny/flux-kontext", "--image", str(picture), "--prompt", "add a red frame"]
    assert main([*base, "--lora", str(lora), "--steps", "2", "--out", str(edited)]) == 0
    assert Image.open(edited).size == (64, 64)


@pytest.mark.slow
def test_the_published_request_for_several_images_runs_as_it_is(tmp_path: Path) -> None:
    write_files(tmp_path)
    request_file, run = tmp_path / "request.json", tmp_path / "run"
    request_file.write_text(json.dumps(HOSTED))
    training = start_script("trainer", "train", request_file, "--out", run)
    while training.process.is_alive() and "\nStep 1 of 3000" not in training.stdout.read_text():
        time.sleep(0.1)
    os.kill(training.process.pid, signal.SIGINT)
    code, output, errors = training.wait()
    assert code == 130, output + errors
    assert "is_public and oxen_model_path of the request have no effect here." in output
    assert steps_logged(run)
    samples = {path.name: Image.open(path) for path in (run / "samples").iterdir()}
    assert {name for name in samples if name.startswith("step")} == {"step-000000-00.png", "step-000000-01.png"}
    assert {name for name in samples if name.startswith("control")} == {
        "control-00.png",
        "control-00-2.png",
        "control-01.png",
    }
    assert {image.size for image in samples.values()} == {(64, 64)}


@pytest.mark.slow
def test_a_finished_run_is_found_at_once(
    request_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(request_file), "--out", str(tmp_path / "run"), "--sample-steps", "2"]
    assert main(arguments) == 0
    capsys.readouterr()
    begun = time.perf_counter()
    assert main(arguments) == 0
    assert time.perf_counter() - begun < 10
    out = capsys.readouterr().out
    assert "Done after 3 steps" in out
    assert "Step 1" not in out


def test_inspect(request_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = request_file.with_name("frame.parquet")
    assert main(["inspect", str(parquet)]) == 0
    out = capsys.readouterr().out
    assert "struct<bytes: binary, path: string>" in out
    assert "4 rows, all usable" in out
    assert "Guessed" in out
    assert main(["inspect", str(parquet), "--json", "--caption-column", "caption"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["columns"]) == ["control", "caption", "target"]
    assert found["used"]["image_column"] == "target"
    assert found["report"]["rows"] == 4


def test_inspect_guesses_as_many_controls_as_the_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = write_parquet(tmp_path / "two.parquet", ["join"], 1, 2)
    for options, used in (
        ([], {"control_image_columns": ["control", "control_2"]}),
        (["--base-model", "tiny/flux-kontext"], {"control_image_column": "control"}),
        (["--control-image-column", "control_2"], {"control_image_column": "control_2"}),
    ):
        assert main(["inspect", str(parquet), "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["used"] == {"caption_column": "caption", "image_column": "target"} | used
    assert main(["inspect", str(parquet)]) == 0
    assert "control_image_columns = control, control_2" in capsys.readouterr().out


def test_inspect_says_which_columns_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.parquet"
    pd.DataFrame({"a": ["x.png"], "b": ["y.png"], "prompt": ["edit"], "image": [3]}).to_parquet(path)
    assert guess_columns(path) == {"caption_column": "prompt"}
    assert main(["inspect", str(path)]) == 0
    assert "--control-image-column, --image-column" in capsys.readouterr().out


@pytest.mark.slow
def test_a_console_without_unicode_shows_something(
    request_file: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    renamed = request_file.rename(tmp_path / "żółw.json")
    with trainer("train", renamed, "--seed", "-1", env={**os.environ, "PYTHONIOENCODING": "cp1252"}) as process:
        output = process.stdout.read()
    assert process.returncode == 2, output
    renamed.unlink()
    with trainer("train", renamed, env={**os.environ, "PYTHONIOENCODING": "ascii"}) as process:
        output = process.stdout.read()
    assert process.returncode == 2
    assert output.startswith("error: Cannot read the request")
    assert "Traceback" not in output


def test_pace_smooths_and_says_the_time_left() -> None:
    pace = Pace()
    for number in range(1, 11):
        pace.update(Step(step=number, steps=70, loss=2.0, learning_rate=1e-4, grad_norm=1.0, seconds=2.0))
    assert str(pace) == "loss 2.0000, smoothed 2.0000, 2.00 s/step, 02:00 left"


def test_without_a_terminal_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Console(quiet_seconds=10, clock=lambda: now) as console:
        for number in range(1, 41):
            console.show(Step(step=number, steps=40, loss=1.0, learning_rate=1e-4, grad_norm=1.0, seconds=1.0))
            now += 1
    shown = re.findall(r"^Step (\d+) of 40", capsys.readouterr().out, re.MULTILINE)
    assert shown == ["1", "11", "21", "31", "40"]


def test_psnr() -> None:
    black, gray = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (51, 51, 51))
    assert psnr(gray, black) == pytest.approx(13.979, abs=1e-3)
    assert psnr(gray, gray) == pytest.approx(100)


def test_sheet_shows_every_picture_of_every_panel() -> None:
    colors = [(40 * number, 0, 255 - 40 * number) for number in range(5)]
    row = [Image.new("RGB", (64, 64), color) for color in colors]
    four, five = ["control", "before", "after", "target"], ["control 1", "control 2", "before", "after", "target"]
    sheet = draw_contact_sheet(
        [
            Panel(title="one", caption="", columns=four, rows=[row[:4]] * 2),
            Panel(title="two", caption="", columns=five, rows=[row]),
        ]
    )
    counted = dict((color, count) for count, color in sheet.getcolors(2**24))
    assert [counted[color] for color in colors] == [3 * 192 * 192] * 4 + [192 * 192]
