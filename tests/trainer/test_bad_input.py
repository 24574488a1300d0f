"""Bad input through the command line: one clear message each, the right exit code, and nothing damaged."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.cli.main import main
from trainer.data.downloads import Downloads
from trainer.errors import printable

COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
STEPS = 2


def encoded(color: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says to be so large, with next to no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@dataclass
class Desk:
    """Where one test prepares its input. `out` already holds a finished run, which nothing may damage."""

    folder: Path
    out: Path

    def parquet(self, name: str = "pairs.parquet", **columns: Any) -> Path:
        """Two good rows, but for the columns given."""
        path = self.folder / name
        good = {
            "before": [encoded("red"), encoded("green")],
            "words": ["one", "two"],
            "after": [encoded("blue"), encoded("white")],
        }
        pq.write_table(pa.table(good | columns), path)
        return path

    def request(self, text: str | bytes | None = None, *, without: str = "", top: Any = None, **params: Any) -> Path:
        """A good request, but for the parts given."""
        if not (self.folder / "pairs.parquet").exists():
            self.parquet()
        training = {**COLUMNS, "steps": STEPS, "samples": [], "lora_rank": 2} | params
        training.pop(without, None)
        request = {"resource": str(self.folder / "pairs.parquet"), "base_model": "tiny/flux-kontext"}
        request |= {"script_type": "image_editing", "training_params": training} | (top or {})
        if text is None:
            text = json.dumps(request)
        path = self.folder / "request.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def train(self, *options: str, **changes: Any) -> list[str]:
        return ["train", str(self.request(**changes)), "--out", str(self.out), "--seed", "5", *options]

    def rows(self, *options: str, **columns: Any) -> list[str]:
        self.parquet(**columns)
        return self.train(*options)

    def edit(self, *options: str) -> list[str]:
        picture = self.folder / "in.png"
        picture.write_bytes(encoded("red"))
        good = ["--image", str(picture), "--prompt", "edit", "--out", str(self.folder / "out.png")]
        return ["edit", "--base-model", "tiny/flux-kontext", *good, *options]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = Desk(tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("runs") / "run")
    assert main(desk.train()) == 0
    return desk.out


@pytest.fixture
def desk(finished_run: Path, tmp_path: Path) -> Iterator[Desk]:
    before = contents(finished_run)
    yield Desk(tmp_path, finished_run)
    assert contents(finished_run) == before


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(capsys: pytest.CaptureFixture[str], argv: list[str], words: tuple[str, ...], code: int = 2) -> None:
    capsys.readouterr()
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in out + err
    for word in words:
        assert word in err


REQUESTS: dict[str, tuple[Callable[[Desk], list[str]], tuple[str, ...]]] = {
    "missing column field": (
        lambda d: d.train(without="caption_column"),
        ("training_params.caption_column", "missing"),
    ),
    "empty column name": (lambda d: d.train(image_column=""), ("training_params.image_column", "empty")),
    "column not in the parquet": (
        lambda d: d.train(caption_column="wrods"),
        ("caption_column", '"wrods"', '"words"', '"before"', '"after"'),
    ),
    "one column for two fields": (lambda d: d.train(image_column="before"), ("image_column", '"before"')),
    "wrong type": (lambda d: d.train(learning_rate=[1]), ("training_params.learning_rate: [1] is not a number",)),
    "number as text": (lambda d: d.train(steps="100"), ('training_params.steps: "100" is not a whole number',)),
    "true for a number": (lambda d: d.train(batch_size=True), ("training_params.batch_size: true",)),
    "0 steps": (lambda d: d.train(steps=0), ("training_params.steps: 0", "1")),
    "fraction of a step": (lambda d: d.train(steps=1.5), ("training_params.steps: 1.5",)),
    "NaN learning rate": (lambda d: d.train(learning_rate=float("nan")), ("training_params.learning_rate: NaN",)),
    "learning rate 0": (lambda d: d.train(learning_rate=0), ("training_params.learning_rate: 0", "greater than 0")),
    "unknown field": (lambda d: d.train(lora_rnak=8), ("training_params.lora_rnak: unknown field",)),
    "unknown timestep type": (
        lambda d: d.train(timestep_type="cubic"),
        ('"cubic"', "'weighted', 'sigmoid' or 'linear'"),
    ),
    "unknown base model": (lambda d: d.train(top={"base_model": "sdxl"}), ('base_model: "sdxl"', "tiny/flux-kontext")),
    "wrong script type": (lambda d: d.train(top={"script_type": "text"}), ('script_type: "text"', "image_editing")),
    "no such resource": (lambda d: d.train(top={"resource": "main/no.parquet"}), ("resource", "main/no.parquet")),
    "several faults": (
        lambda d: d.train(steps=0, batch_size=0, caption_column="x", colour=1),
        ("4 faults", "steps", "batch_size", '"x"', "colour"),
    ),
    "invalid JSON": (lambda d: d.train(text='{"resource": }'), ("not valid JSON", "line 1, column 14")),
    "JSON that is not UTF-8": (lambda d: d.train(text=b'{"resource": "\xff"}'), ("not valid JSON", "UTF-8")),
    "JSON that is no object": (lambda d: d.train(text="[]"), ("[] is not an object",)),
    "repeated key": (lambda d: d.train(text='{"resource": "a", "resource": "b"}'), ('"resource" twice',)),
    "empty request file": (lambda d: d.train(text=""), ("not valid JSON",)),
    "no such request file": (
        lambda d: ["train", str(d.folder / "no.json")],
        ("Cannot read", "no.json", "No such file"),
    ),
    "sample image that is not there": (
        lambda d: d.train(learning_rate=0.1, samples=[{"ctrl_img_url": "no.png", "prompt": "x"}]),
        ("training_params.samples.0.ctrl_img_url", "no.png"),
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_bad_requests(desk: Desk, capsys: pytest.CaptureFixture[str], case: str) -> None:
    prepare, words = REQUESTS[case]
    assert_refused(capsys, prepare(desk), words)


SETTINGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown option": (["--sede", "1"], ("--sede", "train --help")),
    "negative seed": (["--seed", "-1"], ("seed: -1 is too small",)),
    "text for a number": (["--seed", "one"], ('seed: "one" is not a whole number',)),
    "unknown choice": (["--bad-rows", "ignore"], ('bad_rows: "ignore"', "'stop' or 'skip'")),
    "infinite number": (["--weight-decay", "inf"], ("weight_decay",)),
    "two faults": (["--seed", "-1", "--keep-checkpoints", "0"], ("2 faults", "seed", "keep_checkpoints")),
    "conditioning that needs ComfyUI": (["--conditioning", "comfyui"], ("comfyui",)),
    "no such images root": (["--images-root", "no/such/folder"], ("images_root", "no/such/folder")),
    "no such model folder": (["--model", "no/such/model"], ("model", "model_index.json")),
    "no such settings file": (["--settings", "no.json"], ("Cannot read", "no.json")),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(desk: Desk, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, words = SETTINGS[case]
    assert_refused(capsys, desk.train(*options), words)


def test_settings_file_with_unknown_key(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    file = desk.folder / "settings.json"
    file.write_text('{"sead": 1}')
    assert_refused(capsys, desk.train("--settings", str(file)), ("sead", "unknown field"))


ROWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "corrupt JPEG": ({"before": [encoded("red", "JPEG")[:200], encoded("red")]}, ("row 0", '"before"', "damaged")),
    "zero-byte image": ({"after": [encoded("red"), b""]}, ("row 1", '"after"', "0 bytes")),
    "null image": ({"after": [encoded("red"), None]}, ("row 1", '"after"', "null")),
    "not an image": ({"after": [b"hello", encoded("red")]}, ("row 0", '"after"', "not a PNG")),
    "60000 x 60000 pixels": ({"before": [encoded("red"), png_header(60000, 60000)]}, ("row 1", "60000 x 60000")),
    "path that climbs out": ({"before": ["../../etc/passwd", "a.png"]}, ("row 0", '"before"', "../../etc/passwd")),
    "absolute path": ({"before": ["/etc/passwd", "a.png"]}, ("row 0", "/etc/passwd", "absolute")),
    "Windows path": ({"before": ["C:\\a.png", "a.png"]}, ("row 0", "absolute")),
    "file://": ({"before": ["file:///etc/passwd", "a.png"]}, ("row 0", "file")),
    "no such file": ({"before": ["no.png", "no2.png"]}, ("row 0", "no.png", "row 1", "no2.png")),
    "null caption": ({"words": ["one", None]}, ("row 1", '"words"', "null")),
    "captions that are numbers": ({"words": [1, 2]}, ("caption_column", '"words"', "int64", "text")),
    "images that are numbers": ({"after": [1.5, 2.5]}, ("image_column", '"after"', "double")),
    "no rows": ({name: pa.array([], pa.string()) for name in ("before", "words", "after")}, ("no rows",)),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows(desk: Desk, capsys: pytest.CaptureFixture[str], case: str) -> None:
    columns, words = ROWS[case]
    assert_refused(capsys, desk.rows(**columns), words)


def test_no_rows_left_when_all_are_skipped(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, desk.rows("--bad-rows", "skip", before=[b"", None]), ("no rows left", "row 0", "row 1"))


def test_address_that_hangs(desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Downloads.__init__.__kwdefaults__, "timeout", 0.2)
    monkeypatch.setitem(Downloads.__init__.__kwdefaults__, "deadline", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        assert_refused(capsys, desk.rows(before=[url, url]), ("row 0", url))


@pytest.mark.parametrize("data", [b"", b"PAR1 and then nothing", b"before,words,after\n1,2,3\n"])
def test_not_a_parquet(desk: Desk, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    argv = desk.train()
    (desk.folder / "pairs.parquet").write_bytes(data)
    assert_refused(capsys, argv, ("pairs.parquet",))
    assert_refused(capsys, ["inspect", str(desk.folder / "pairs.parquet")], ("pairs.parquet",))


def test_out_is_a_file(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    taken = desk.folder / "taken"
    taken.write_text("mine")
    assert_refused(capsys, desk.train("--out", str(taken)), ("taken",))
    assert_refused(capsys, ["demo", "--out", str(taken)], ("taken",))
    assert_refused(capsys, desk.train("--out", str(taken / "run")), ("taken",))
    assert taken.read_text() == "mine"


EDITS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no such image": (["--image", "no.png"], ("no.png",)),
    "unknown base model": (["--base-model", "sdxl"], ("sdxl", "tiny/qwen-image-edit")),
    "no such LoRA": (["--lora", "no.safetensors"], ("no.safetensors", "does not exist")),
    "negative seed": (["--seed", "-3"], ("--seed -3",)),
    "number that is none": (["--steps", "many"], ("--steps", "many")),
    "NaN": (["--guidance", "nan"], ("--guidance nan",)),
    "one side only": (["--width", "64"], ("--width and --height",)),
    "another picture format": (["--out", "out.xyz"], ("out.xyz", ".png")),
    "negative prompt without use": (["--negative-prompt", "blur"], ("negative prompt",)),
}


@pytest.mark.parametrize("case", EDITS)
def test_bad_edits(desk: Desk, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, words = EDITS[case]
    assert_refused(capsys, desk.edit(*options), words)
    assert not (desk.folder / "out.png").exists()


def test_lora_file_that_is_none(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    broken = desk.folder / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    assert_refused(capsys, desk.edit("--lora", str(broken)), ("broken.safetensors", "safetensors"))
    lora = next(desk.out.glob("*.safetensors"))
    for_other_model = desk.edit("--lora", str(lora), "--base-model", "tiny/qwen-image-edit")
    assert_refused(capsys, for_other_model, (lora.name, "another model"))


def test_options_that_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["train"], ("REQUEST.json",))
    assert_refused(capsys, ["edit"], ("--base-model", "--image", "--prompt", "--out"))
    assert_refused(capsys, ["trian"], ("trian", "train"))


@pytest.mark.slow
def test_disk_full_in_the_middle_of_a_checkpoint(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = desk.folder / "run"
    argv = desk.train("--out", str(out), steps=4, sample_every=2)
    from trainer.training import checkpoint

    write = checkpoint.save_tensors
    written = []

    def fill_up(path: Path, *rest: Any) -> None:
        written.append(path)
        if len(written) < 4:
            return write(path, *rest)
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", fill_up)
        assert_refused(capsys, argv, ("step-000004", "No space left on device"), code=1)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert main(argv) == 0
    assert (out / "run-000004.safetensors").is_file()


def test_interrupted_before_anything(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    argv = desk.train()
    monkeypatch.setattr("trainer.cli.train.load_request", interrupt)
    assert main(argv) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


ESCAPES = "\x1b[2J\x9b31m\u202eevil\x07"


def test_no_escape_of_a_file_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Neither by a column's name, a file's name, nor a cell; what people write stays as it is."""
    columns = {f"prompt{ESCAPES}": ["a"], "before": [f"{ESCAPES}.png"], "after": [f"b\x9b31m{ESCAPES[5:8]}.png"]}
    path = tmp_path / f"dätä 写真 {ESCAPES[5:-1]}.parquet"
    pq.write_table(pa.table(columns), path)
    names = ["--caption-column", f"prompt{ESCAPES}", "--control-image-column", "before", "--image-column", "after"]
    for options in ([], names, [*names[:-1], f"after{ESCAPES}"]):
        main(["inspect", str(path), *options])
        said = "".join(capsys.readouterr())
        assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(said)
        assert "\\x9b31m\\u202eevil" in said and "dätä 写真" in said
    assert printable("a\tb\n\u00a0é 写真 \U0001f469\u200d\U0001f680") == "a\tb\n\u00a0é 写真 \U0001f469\u200d\U0001f680"
