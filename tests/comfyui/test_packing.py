"""Pictures that become a dataset inside ComfyUI: dropped zips, folders, and pairs that a graph makes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

from ..trainer.edits import number_of, png
from .server import Server
from .test_page_routes import ask


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def pairs(count: int) -> dict[str, bytes]:
    files = {f"control/{n}.png": png(n) for n in range(count)} | {
        f"target/{n}.png": png(n + 1000) for n in range(count)
    }
    return files | {f"target/{n}.txt": f"edit {n}".encode() for n in range(count)}


def pack(server: Server, **asked: object) -> tuple[int, dict]:
    status, body = ask(server, "/edit_trainer/pack", json.dumps(asked).encode())
    return status, json.loads(body)


def test_a_dropped_zip_becomes_a_parquet(server: Server) -> None:
    data = zipped(pairs(3))
    folder = server.base / "input"
    for _ in range(2):  # the second time nothing is written
        assert json.loads(ask(server, "/edit_trainer/upload?name=my%20set.zip", data)[1]) == {"name": "my set.zip"}
        assert pack(server, path="my set.zip") == (200, {"parquet": "my set.parquet"})
    rows = pq.read_table(folder / "my set.parquet").to_pylist()
    assert [(number_of(row["control"]), number_of(row["target"]), row["caption"]) for row in rows] == [
        (n, n + 1000, f"edit {n}") for n in range(3)
    ]
    assert server.get("/edit_trainer/columns", resource="my set.parquet")["guess"] == {
        "caption_column": "caption",
        "control_image_column": "control",
        "image_column": "target",
    }
    other = zipped(pairs(2))
    assert json.loads(ask(server, "/edit_trainer/upload?name=my%20set.zip", other)[1]) == {"name": "my set-2.zip"}
    assert pack(server, path="my set-2.zip") == (200, {"parquet": "my set-2.parquet"})
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_of_pictures_and_a_caption_for_all(server: Server) -> None:
    folder = server.base / "input" / "drops" / "a"
    for name, data in {"x_start.png": png(1), "x_end.png": png(2)}.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    status, answer = pack(server, path="drops/a")
    assert status == 400 and "x_end.png: has no caption" in answer["error"]
    assert pack(server, path="drops/a", caption="add a frame") == (200, {"parquet": "drops/a.parquet"})
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.parquet"]


def test_what_cannot_be_packed_is_named_and_nothing_is_written(server: Server, tmp_path: Path) -> None:
    folder = server.base / "input"
    (tmp_path / "outside.zip").write_bytes(zipped(pairs(1)))
    (folder / "bad.zip").write_bytes(zipped(pairs(1) | {"target/lonely.png": png(5)}))
    before = sorted(folder.rglob("*"))
    for path in (str(tmp_path / "outside.zip"), "../outside.zip", ".", "", "nowhere.zip", "\\\\server\\share\\a.zip"):
        status, answer = pack(server, path=path)
        assert status == 400 and answer["error"], path
    status, answer = pack(server, path="bad.zip")
    assert status == 400 and "target/lonely.png: has no partner in control" in answer["error"]
    assert pack(server, path=["bad.zip"])[0] == 400
    assert ask(server, "/edit_trainer/pack", b"no json")[0] == 400
    foreign = ask(server, "/edit_trainer/pack", b'{"path": "bad.zip"}', Origin="http://elsewhere.example")
    assert foreign[0] == 403
    for name, data in (("a.zip", b"PK\x03\x04 cut off"), ("b.zip", zipped({"../a.png": png(1)})), ("c.exe", b"")):
        assert ask(server, f"/edit_trainer/upload?name={name}", data)[0] == 400, name
    assert sorted(folder.rglob("*")) == before
