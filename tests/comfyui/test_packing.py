"""Pictures that become a dataset inside ComfyUI: dropped zips, folders, and pairs that a graph makes."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ..trainer.edits import number_of, png
from .graphs import EXAMPLE, edited, node, training
from .server import Result, Server
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
    (server.output / "made.zip").write_bytes(zipped(pairs(1)))
    (folder / "bad.zip").write_bytes(zipped(pairs(1) | {"target/lonely.png": png(5)}))
    before = sorted(folder.rglob("*"))
    for path in (
        str(tmp_path / "outside.zip"),
        "../outside.zip",
        "../output/made.zip",
        ".",
        "",
        "nowhere.zip",
        "\\\\server\\share\\a.zip",
    ):
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


def made(**inputs: object) -> dict:
    """A Make Edit Dataset node."""
    empty = dict.fromkeys(
        ("control_folder", "control_folder_2", "control_folder_3", "target_folder", "caption", "captions", "name"), ""
    )
    return node("EditTrainerMakeDataset", **empty | {"images": "embedded"} | inputs)


def put(server: Server, folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = server.base / "input" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def trained(dataset: dict, run_name: str) -> dict:
    """A training on what a node gives as a dataset."""
    return edited(training(run_name=run_name)) | {"dataset": dataset}


def pictures(count: int) -> dict[str, bytes]:
    files = {f"before/{n}.png": png(n * 20, (64, 64)) for n in range(count)}
    return files | {f"after/{n}.png": png(255 - n * 20, (64, 64)) for n in range(count)}


def test_two_folders_train_a_lora_and_edit(server: Server) -> None:
    put(server, "packed", pictures(3))
    folders = {"folder": "packed", "control_folder": "before", "target_folder": "after", "caption": "invert it"}
    prompt = trained(made(**folders), "from-folders") | {"report": node("PreviewAny", source=["dataset", 2])}
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert "packed.parquet: 3 rows, all usable" in result.text("report")
    assert "from-folders-000004.safetensors" in server.get("/models/loras")
    assert "dataset" not in server.run(prompt).executed(), "nothing has changed"
    put(server, "packed", {"before/3.png": png(70, (64, 64))})
    result = server.run(prompt)
    assert result.status == "execution_error"
    assert "before/3.png: has no partner in after" in result.details["exception_message"]
    put(server, "packed", {"after/3.png": png(80, (64, 64))})
    report = server.run({name: prompt[name] for name in ("dataset", "report")})
    assert "packed.parquet: 4 rows" in report.text("report")


def said(result: Result, name: str) -> list[tuple[str, int]]:
    """Code and number of examples of each note in a node."""
    return [(note["code"], note["values"]["n"]) for note in result.outputs[name]["edit_trainer_notes"]]


def test_nodes_that_write_a_dataset_run_alone_and_say_how_many_examples_there_are(server: Server) -> None:
    put(server, "alone", pictures(3))
    folders = {"folder": "alone", "control_folder": "before", "target_folder": "after", "caption": "invert it"}
    result = server.run({"made": made(**folders)})
    assert result.status == "execution_success", result.details
    assert said(result, "made") == [("datasetMade", 3)]
    assert (server.base / "input" / "alone.parquet").is_file()

    put(server, "", {"alone-1.png": png(1, (64, 64)), "alone-2.png": png(2, (64, 64))})
    for picture, code, examples in (
        ("alone-1.png", "examplesAdded", 1),
        ("alone-1.png", "nothingNew", 1),
        ("alone-2.png", "examplesAdded", 2),
    ):
        added = {"control_image": ["load", 0], "target_image": ["invert", 0], "caption": "invert it", "name": "grown"}
        loaded = {"load": node("LoadImage", image=picture), "invert": node("ImageInvert", image=["load", 0])}
        result = server.run(loaded | {"added": node("EditTrainerAddExample", **added)})
        assert said(result, "added") == [(code, examples)]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"folder": ""}, "folder: is required but empty"),
        ({"folder": "nowhere"}, "does not exist"),
        ({"folder": "theirs", "caption": "x", "name": "foreign"}, "was not made of pictures, so it is left as it is"),
        ({"folder": "theirs", "caption": "x", "name": "a/b"}, "cannot be used; give a file name"),
        ({"folder": "theirs", "caption": "x", "control_folder_2": "b"}, "control_folder: is empty"),
        ({"folder": "theirs"}, "has no caption"),
    ],
)
def test_what_the_node_refuses(server: Server, inputs: dict, says: str) -> None:
    put(server, "theirs", {"control/a.png": png(1), "target/a.png": png(2)})
    foreign = server.base / "input" / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    before = foreign.read_bytes()
    result = server.run({"made": made(**inputs), "report": node("PreviewAny", source=["made", 2])})
    assert result.status == "execution_error" and says in result.details["exception_message"]
    assert foreign.read_bytes() == before and not (server.base / "input" / "theirs.parquet").exists()


def test_a_graph_makes_its_own_pairs_trains_and_edits(server: Server) -> None:
    put(server, "", {f"own-{n}.png": png(n * 30, (64, 64)) for n in range(8)})
    prompt = trained(node("EditTrainerAddExample"), "from-graph")
    before = {}
    for n in range(8):
        prompt[f"load{n}"] = node("LoadImage", image=f"own-{n}.png")
        prompt[f"invert{n}"] = node("ImageInvert", image=[f"load{n}", 0])
        name = "dataset" if n == 7 else f"add{n}"
        prompt[name] = node(
            "EditTrainerAddExample",
            control_image=[f"load{n}", 0],
            target_image=[f"invert{n}", 0],
            caption="invert the colors",
            name="own",
            **before,
        )
        before = {"dataset": [name, 0]}
    prompt["report"] = node("PreviewAny", source=["dataset", 2])
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    assert "dataset.parquet: 8 rows, all usable" in result.text("report")
    assert "from-graph-000004.safetensors" in server.get("/models/loras")
    assert len(result.outputs["saved"]["images"]) == 4
    rows = pq.read_table(server.base / "input" / "own" / "dataset.parquet").to_pylist()
    shown = [
        tuple(number_of((server.base / "input" / "own" / row[name]).read_bytes()) for name in ("control", "target"))
        for row in rows
    ]
    assert [control for control, _ in shown] == [n * 30 for n in range(8)]
    assert [target % 256 for _, target in shown] == [255 - n * 30 for n in range(8)]
    again = server.run(prompt)
    assert again.status == "execution_success"
    assert "8 rows" in again.text("report"), "what is in it already is not added again"
    assert "own/dataset.parquet" in server.get("/edit_trainer/parquets")


def test_batches_and_executions_in_one_queue_add_each_pair_once(server: Server) -> None:
    put(server, "", {f"batch-{n}.png": png(n * 30, (32, 32)) for n in range(3)})
    batch = {f"load{n}": node("LoadImage", image=f"batch-{n}.png") for n in range(3)}
    batch["two"] = node("ImageBatch", image1=["load0", 0], image2=["load1", 0])
    batch["inverted"] = node("ImageInvert", image=["two", 0])

    def add(control: str, target: str, caption: str = "x") -> dict:
        added = node(
            "EditTrainerAddExample", control_image=[control, 0], target_image=[target, 0], caption=caption, name="batch"
        )
        return batch | {"add": added, "report": node("PreviewAny", source=["add", 2])}

    assert "2 rows" in server.run(add("two", "inverted")).text("report")
    threads = [threading.Thread(target=server.run, args=(add("two", "inverted", f"caption {n}"),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "10 rows" in server.run(add("two", "inverted")).text("report")
    result = server.run(add("load2", "inverted"))
    assert result.status == "execution_error"
    assert "target_image 2, caption 2, control_image 1" in result.details["exception_message"]


def test_a_folder_of_shards_in_the_dataset_node(server: Server) -> None:
    folder = server.base / "input" / "shards"
    folder.mkdir()
    for n in range(2):
        columns = {"caption": [f"{n}"], "control": [png(n)], "target": [png(n + 9) if n == 0 else b"no picture"]}
        pq.write_table(pa.table(columns), folder / f"train-0000{n}-of-00002.parquet")
    assert "shards" in server.get("/edit_trainer/parquets")
    for resource in ("shards", "shards/train-*.parquet", "main/shards/*"):
        found = server.get("/edit_trainer/columns", resource=resource)
        assert (found["rows"], found["kinds"]["control"]) == (2, "image")
        dataset = node("EditTrainerLoadDataset", **EXAMPLE | {"resource": resource, "bad_rows": "skip"})
        result = server.run({"dataset": dataset, "report": node("PreviewAny", source=["dataset", 2])})
        assert 'train-00001-of-00002.parquet, row 0, column "target"' in result.text("report")
        (note,) = [note for note in result.outputs["dataset"]["edit_trainer_notes"] if note["code"] == "rowsLeftOut"]
        assert note["values"]["faults"][0]["file"] == "train-00001-of-00002.parquet"
    (server.base / "outside").mkdir()
    pq.write_table(pa.table({"caption": ["secret"]}), server.base / "outside" / "a.parquet")
    for resource in ("../outside/*.parquet", "shards/../../outside/*", str(server.base / "outside"), "../outside"):
        assert (
            "is not found in ComfyUI's input folder" in server.get("/edit_trainer/columns", resource=resource)["error"]
        )
    (folder / "train-00002-of-00002.parquet").symlink_to(server.base / "outside" / "a.parquet")
    assert "is not found" in server.get("/edit_trainer/columns", resource="shards/*.parquet")["error"]
    shutil.rmtree(folder)


def test_a_body_that_comes_in_parts_is_read_whole(server: Server) -> None:
    folder = server.base / "input" / "parts"
    for name, data in {"x_start.png": png(1), "x_end.png": png(2)}.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    body = json.dumps({"path": "parts", "caption": "x" * 60_000}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/edit_trainer/pack")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    for part in (body[:100], body[100:]):
        connection.send(part)
        time.sleep(0.3)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (200, {"parquet": "parts.parquet"})
    status, said = ask(server, "/edit_trainer/pack", json.dumps({"path": "parts", "caption": "x" * 2**18}).encode())
    assert status == 400 and "larger than 262,144 bytes" in said.decode()


def test_zips_of_one_name_that_are_uploaded_at_once_are_all_kept(server: Server) -> None:
    contents = [zipped(pairs(number)) for number in range(1, 7)]
    with ThreadPoolExecutor(len(contents)) as pool:
        answers = list(pool.map(lambda data: ask(server, "/edit_trainer/upload?name=at%20once.zip", data), contents))
    names = [json.loads(body)["name"] for _, body in answers]
    assert [(server.base / "input" / name).read_bytes() for name in names] == contents
