"""What the page asks for: runs on the disk, pictures, columns, uploads, and who may ask."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.training.run_lock import lock_run

from ..trainer.hostile_parquets import HOSTILE
from .graphs import edited, training
from .run_snapshots import LiveSnapshot, RunSnapshot, RunSummary, keys
from .server import PACK, Server

EXAMPLE = PACK / "example_workflows" / "edit_trainer_example.parquet"


def ask(server: Server, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of any answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def run_name(server: Server) -> str:
    """A finished run."""
    assert server.run(training(run_name="shown")).status == "execution_success"
    return "shown"


def test_the_list_of_runs_and_one_run_in_full(server: Server, run_name: str) -> None:
    summary = RunSummary(**next(line for line in server.get("/edit_trainer/archive") if line["run"] == run_name))
    assert (summary.state, summary.base_model, summary.step, summary.steps) == ("finished", "tiny/flux-kontext", 4, 4)
    assert summary.lora == "shown-000004.safetensors"
    saved = server.get(f"/edit_trainer/archive/{run_name}")
    assert saved.keys() == keys(RunSnapshot) | keys(RunSummary) | {"request", "settings", "workflow"}
    live = LiveSnapshot(**server.get("/edit_trainer/runs/train"))
    snapshot = RunSnapshot(**{name: saved[name] for name in keys(RunSnapshot)})
    for name in ("run", "state", "step", "steps", "points", "samples", "checkpoints"):
        assert getattr(snapshot, name) == getattr(live, name), name
    assert snapshot.checkpoints == [4]
    assert saved["loss"] == summary.loss == snapshot.points[-1][1]


def test_pictures_whole_and_as_thumbnails(server: Server, run_name: str) -> None:
    status, whole = ask(server, f"/edit_trainer/archive/{run_name}/step-000004-00.png")
    assert status == 200
    assert Image.open(BytesIO(whole)).size == (64, 64)
    status, small = ask(server, f"/edit_trainer/archive/{run_name}/step-000004-00.png?px=32")
    assert status == 200
    assert Image.open(BytesIO(small)).size == (32, 32)


@pytest.mark.parametrize(
    "path",
    [
        "archive/..",
        "archive/%2e%2e",
        "archive/..%2f..",
        "archive/edit_trainer_cache/x.png",
        "archive/shown/..%2frequest.json",
        "archive/shown/request.json",
        "archive/shown/..%2f..%2f..%2fsecret.png",
        "archive/%2fetc",
        "columns?resource=/etc/passwd",
        "columns?resource=../secret.parquet",
        "columns?resource=x/../../secret.parquet",
        "first_rows?column=control&resource=../secret.parquet",
        "first_rows?column=control&resource=edit_trainer_example.parquet&images_root=/etc",
    ],
)
def test_nothing_outside_is_shown(server: Server, run_name: str, path: str) -> None:
    (server.base / "secret.parquet").write_bytes(EXAMPLE.read_bytes())
    Image.new("RGB", (8, 8)).save(server.base / "secret.png")
    status, body = ask(server, f"/edit_trainer/{path}")
    assert status in (400, 404) or json.loads(body).keys() == {"error"}
    assert b"PAR1" not in body


def test_a_folder_that_is_a_link_to_elsewhere_is_no_run(server: Server, run_name: str, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "samples" / "step-000001-00.png")
    (server.output / "edit_trainer" / "link").symlink_to(tmp_path, target_is_directory=True)
    assert ask(server, "/edit_trainer/archive/link/step-000001-00.png")[0] == 400


@pytest.mark.parametrize("path", ["archive", "archive/shown", "archive/shown/step-000004-00.png", "runs/train"])
@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}])
def test_another_sites_page_is_refused(server: Server, run_name: str, path: str, header: dict[str, str]) -> None:
    assert ask(server, f"/edit_trainer/{path}")[0] == 200
    assert ask(server, f"/edit_trainer/{path}", None, **header)[0] == 403
    assert ask(server, "/edit_trainer/push/shown", None, **header)[0] == 403
    for action in ("runs/train/stop", "archive/shown/delete", "push/shown?repo=a/b", "request_notes"):
        assert ask(server, f"/edit_trainer/{action}", b"", **header)[0] == 403
    assert ask(server, "/edit_trainer/upload?name=a.parquet", EXAMPLE.read_bytes(), **header)[0] == 403
    assert not (server.base / "input" / "a.parquet").exists()


def test_columns_with_kinds_rows_and_cells(server: Server) -> None:
    found = server.get("/edit_trainer/columns", resource="main/edit_trainer_example.parquet")
    assert found["rows"] == 128
    assert found["kinds"] == {"control": "image", "caption": "text", "target": "image"}
    assert found["texts"]["caption"][0]
    pictures = server.get("/edit_trainer/first_rows", resource="edit_trainer_example.parquet", column="control")
    assert len(pictures["control"]) == 3
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures["control"])


def test_an_uploaded_parquet_lands_in_the_input_folder_and_overwrites_nothing(server: Server) -> None:
    data = EXAMPLE.read_bytes()
    buffer = BytesIO()
    pq.write_table(pa.table({"other": ["one"]}), buffer)
    bodies = (data, data, buffer.getvalue(), data, buffer.getvalue())
    names = [json.loads(ask(server, "/edit_trainer/upload?name=mine.parquet", body)[1])["name"] for body in bodies]
    assert names == ["mine.parquet", "mine.parquet", "mine-2.parquet", "mine.parquet", "mine-2.parquet"]
    assert (server.base / "input" / "mine.parquet").read_bytes() == data
    assert (server.base / "input" / "mine-2.parquet").read_bytes() == buffer.getvalue()
    assert {*names, "edit_trainer_example.parquet"} <= set(server.get("/edit_trainer/parquets"))
    before = sorted((server.base / "input").iterdir())
    for name, body in (("../x.parquet", data), ("x.exe", data), ("", data), ("x.parquet", b"no parquet")):
        assert ask(server, f"/edit_trainer/upload?name={urllib.parse.quote(name, safe='')}", body)[0] == 400
    assert sorted((server.base / "input").iterdir()) == before


def test_a_request_is_read_and_its_faults_are_named(server: Server) -> None:
    request = {
        "resource": "edit_trainer_example.parquet",
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": {"caption_column": "a", "control_image_column": "b", "image_column": "c"},
    }
    status, body = ask(server, "/edit_trainer/request", json.dumps(request).encode())
    assert status == 200
    assert json.loads(body)["request"]["training_params"]["steps"] == 3000
    request["training_params"]["steps"] = -1
    status, body = ask(server, "/edit_trainer/request", json.dumps(request).encode())
    assert "steps" in json.loads(body)["error"]


def test_a_request_in_many_chunks_is_read_whole(server: Server) -> None:
    request = {
        "resource": "edit_trainer_example.parquet",
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": {
            "caption_column": "caption",
            "control_image_column": "control",
            "image_column": "target",
            "samples": [{"ctrl_img_url": "", "prompt": "x" * 200} for _ in range(5000)],
        },
    }
    status, body = ask(server, "/edit_trainer/request", json.dumps(request).encode())
    assert status == 200
    assert json.loads(body).get("request", json.loads(body))["training_params"]["samples"][4999]["prompt"] == "x" * 200
    assert ask(server, "/edit_trainer/request", b" " * (4 * 2**20 + 1))[0] == 400


@pytest.mark.parametrize("root", ["%00", "..%2F..%2F..", "%5C%5Cserver%5Cshare", "%2F%2Fserver%2Fshare", "x" * 5000])
@pytest.mark.parametrize("name", ["edit_trainer_example.parquet", "%00", "%5C%5Cserver%5Cx.parquet", "x" * 5000])
def test_folders_elsewhere_are_refused(server: Server, root: str, name: str) -> None:
    path = f"/edit_trainer/first_rows?resource={name}&column=control&images_root={root}"
    status, body = ask(server, path)
    if status == 200:  # a long name is a folder that is not there
        assert root == "x" * 5000
    else:
        assert status == 400, body


def test_one_damaged_run_hides_no_other(server: Server, run_name: str) -> None:
    runs = server.output / "edit_trainer"
    whole = server.get(f"/edit_trainer/archive/{run_name}")
    damage = {
        "log.jsonl": ["null", "[1]", '{"event": "step", "step": NaN}', "\x00", "{" * 100_000],
        "request.json": ["null", "[]", '{"training_params": []}', '{"training_params": {"steps": "4"}}', "[" * 100_000],
        "settings.json": ["null", '{"init_lora": [1]}', '{"seed": NaN}'],
        "run.json": ["null", "[]", '{"fingerprint": 3}', '{"fingerprint": "x", "precision": [1]}', '{"version": 99}'],
        "workflow.json": ["[]", "{", '{"a": Infinity}'],
    }
    folders = []
    for name, contents in damage.items():
        for number, content in enumerate(contents):
            folder = runs / f"damaged-{name}-{number}"
            shutil.copytree(runs / run_name, folder)
            (folder / name).write_text(content, encoding="utf-8")
            folders.append(folder)
    try:
        (folders[0] / "samples" / "step-000002-00 (1).png").write_bytes(b"")
        (folders[0] / "checkpoints" / "step-000003 - Copy").mkdir()
        listed = {line["run"]: line for line in server.get("/edit_trainer/archive")}
        assert listed[run_name]["step"] == 4
        for folder in folders:
            status, body = ask(server, f"/edit_trainer/archive/{folder.name}")
            assert status in (200, 400), (folder.name, body)
            json.loads(body, parse_constant=pytest.fail)
            if status == 400:
                assert "is damaged" in json.loads(body)["error"] or "run.json" in json.loads(body)["error"]
        assert server.get(f"/edit_trainer/archive/{run_name}") == whole
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def test_a_name_that_its_lora_cannot_have_is_refused_at_once(server: Server) -> None:
    result = server.run(training(run_name="漢" * 80))
    assert result.status == "execution_error"
    assert "shorter name for the run" in result.details["exception_message"]
    assert not (server.output / "edit_trainer" / ("漢" * 80)).exists()


def test_stop_and_save_and_sample_now(server: Server) -> None:
    pressed: list[str] = []

    def press(kind: str, data: dict) -> None:
        if kind != "edit_trainer.run":
            return
        if data["step"] >= 2 and not pressed:
            pressed.append("sample")
            assert server.post("/edit_trainer/runs/train/sample", {}) == {}
        elif pressed == ["sample"] and any(sample["step"] > 0 for sample in data["samples"]):
            pressed.append("stop")
            threading.Thread(target=server.post, args=("/edit_trainer/runs/train/stop", {})).start()

    prompt = edited(training(run_name="stopped", params={"steps": 2000, "sample_every": 2000}))
    result = server.run(prompt, press)
    assert pressed == ["sample", "stop"]
    assert result.status == "execution_success"
    last = result.events()[-1]
    assert last["state"] == "stopped"
    assert 2 < last["step"] < 2000
    lora = f"stopped-{last['step']:06d}.safetensors"
    assert lora in last["status"]
    assert (server.output / "loras" / lora).is_file()
    assert {"preview", "edit"} <= result.executed()
    assert server.get("/edit_trainer/runs/train")["samples"][-1]["step"] == last["step"]
    assert last["checkpoints"][-1:] == [last["step"]] or server.get("/edit_trainer/runs/train")["checkpoints"]
    assert json.loads(ask(server, "/edit_trainer/runs/train/stop", b"")[1])["error"]
    line = next(line for line in server.get("/edit_trainer/archive") if line["run"] == "stopped")
    assert (line["state"], line["step"]) == ("stopped", last["step"])


def test_a_run_that_was_stopped_and_saved_goes_on_in_the_same_graph(server: Server) -> None:
    pressed = []

    def press(kind: str, data: dict) -> None:
        # Steps are faster than messages: the first one may have no message of its own.
        if kind == "edit_trainer.run" and data["step"] >= 1 and not pressed:
            pressed.append("stop")
            threading.Thread(target=server.post, args=("/edit_trainer/runs/train/stop", {})).start()

    steps = 60
    prompt = training(run_name="twice", params={"steps": steps, "sample_every": 1000})
    first = server.run(prompt, press).events()[-1]
    assert first["state"] == "stopped" and 1 <= first["step"] < steps
    name = f"twice-{first['step']:06d}.safetensors"
    lora = server.output / "loras" / name
    saved = lora.read_bytes()
    lora.unlink()
    exported = server.post(f"/edit_trainer/archive/twice/export?step={first['step']}", {})
    assert exported == {"file": name, "folder": "loras", "path": str(lora)}
    assert lora.read_bytes() == saved
    status, answer = ask(server, "/edit_trainer/archive/twice/export?step=77", b"")
    assert status == 400 and "has no checkpoint of step 77; it has those of" in json.loads(answer)["error"]
    events = server.run(prompt).events()
    assert (events[-1]["state"], events[-1]["step"]) == ("finished", steps)
    assert min(event["step"] for event in events if event["steps"]) >= first["step"]
    points = server.get("/edit_trainer/runs/train")["points"]
    assert [step for step, _ in points] == list(range(1, steps + 1))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_file_leaves_comfyui_responsive(server: Server, hostile: str) -> None:
    """While the dataset node asks for its columns and first rows."""
    path = server.base / "input" / "hostile.parquet"
    HOSTILE[hostile][0](path)
    asked = [
        "/edit_trainer/columns?resource=hostile.parquet",
        "/edit_trainer/first_rows?resource=hostile.parquet&column=before&column=after",
    ]
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(server, address)[0] for address in asked))
    asking.start()
    waits = []
    while asking.is_alive():
        begun = time.monotonic()
        server.get("/system_stats")
        waits.append(time.monotonic() - begun)
        asking.join(0.05)
    path.unlink()
    assert max(waits) < 1
    assert len(answers) == 2
    assert set(answers) <= {200, 400}


def test_a_run_is_deleted_and_nothing_else(server: Server, run_name: str) -> None:
    runs = server.output / "edit_trainer"
    shutil.copytree(runs / run_name, runs / "unwanted")
    (runs / "a persons folder").mkdir()
    for name in ("edit_trainer_cache", "..", "nowhere", "%2e%2e%2floras", "a%20persons%20folder"):
        assert ask(server, f"/edit_trainer/archive/{name}/delete", b"")[0] in (400, 404), name
    with lock_run(runs / "unwanted"):
        status, body = ask(server, "/edit_trainer/archive/unwanted/delete", b"")
        assert (status, "in use" in body.decode()) == (400, True)
    assert (runs / "edit_trainer_cache").is_dir() and (runs / "unwanted" / "run.json").is_file()
    kept = sorted(path for path in runs.rglob("*") if runs / "unwanted" not in (path, *path.parents))
    status, body = ask(server, "/edit_trainer/archive/unwanted/delete", b"")
    assert (status, json.loads(body).keys()) == (200, {"in_bin"})
    assert sorted(runs.rglob("*")) == kept
    (runs / "a persons folder").rmdir()


def test_a_run_in_progress_is_not_deleted(server: Server) -> None:
    folder = server.output / "edit_trainer" / "busy"
    refused = []

    def delete(kind: str, data: dict) -> None:
        if kind == "edit_trainer.run" and data["step"] > 2 and not refused:
            refused.append(ask(server, "/edit_trainer/archive/busy/delete", b""))
            server.interrupt()

    server.run(training(run_name="busy", params={"steps": 2000, "sample_every": 2000}), delete)
    ((status, body),) = refused
    assert (status, "stop it first" in body.decode()) == (400, True)
    assert (folder / "run.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="the bin of other systems is the person's own")
def test_a_deleted_run_is_in_the_bin_of_a_desktop(server: Server, run_name: str) -> None:
    runs, trash = server.output / "edit_trainer", server.base / "desktop" / "Trash"
    for folder in ("files", "info"):
        (trash / folder).mkdir(parents=True)
    shutil.copytree(runs / run_name, runs / "un wanted")
    try:
        assert json.loads(ask(server, "/edit_trainer/archive/un%20wanted/delete", b"")[1]) == {"in_bin": True}
        ((file,), (info,)) = ((trash / folder).iterdir() for folder in ("files", "info"))
        assert (file / "run.json").read_bytes() == (runs / run_name / "run.json").read_bytes()
        assert info.name == f"{file.name}.trashinfo"
        assert f"Path={urllib.parse.quote(str(runs / 'un wanted'))}" in info.read_text(encoding="utf-8").splitlines()
        assert not (runs / "un wanted").exists()
    finally:
        shutil.rmtree(trash)
