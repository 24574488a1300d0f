"""Looking through the rows of a dataset, and editing them: what the page asks for, and what is refused."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.data.parquet_rows import HELD_BYTES

from .graphs import training
from .server import Server
from .test_page_routes import EXAMPLE, ask

COLUMNS = "caption_column=caption&control=control&image_column=target"


@pytest.fixture
def parquet(server: Server) -> Path:
    """A copy of the example in the input folder, without edits, whose row 3 has its control as its target."""
    path = server.base / "input" / "look" / "pairs.parquet"
    path.parent.mkdir(exist_ok=True)
    path.with_name("pairs.parquet.edits.json").unlink(missing_ok=True)
    table = pq.read_table(EXAMPLE)
    targets = table["target"].to_pylist()
    targets[3] = table["control"][3].as_py()
    field = table.schema.field("target")
    index = table.schema.get_field_index("target")
    pq.write_table(table.set_column(index, field, pa.array(targets, field.type)), path)
    return path


def edit(server: Server, resource: str = "look/pairs.parquet", **changes: Any) -> tuple[int, Any]:
    status, body = ask(server, f"/edit_trainer/row_edits?resource={resource}", json.dumps(changes).encode())
    return status, json.loads(body)


def read(server: Server, *rows: int) -> list[dict[str, Any]]:
    query = {"resource": "look/pairs.parquet", "caption_column": "caption", "rows": ",".join(map(str, rows))}
    return server.get("/edit_trainer/rows", **query)["items"]


def test_rows_are_read_edited_and_taken_back(server: Server, parquet: Path) -> None:
    captions = pq.read_table(EXAMPLE)["caption"].to_pylist()
    state = server.get("/edit_trainer/row_edits", resource="look/pairs.parquet")
    assert (state["rows"], state["left_out"], state["editable"], state["fault"]) == (128, [], True, "")
    assert read(server, 127, 0) == [{"row": n, "caption": captions[n], "left_out": False} for n in (127, 0)]
    status, state = edit(server, leave_out=[2, 100], column="caption", captions={"0": "<b>new</b> ü"})
    assert (status, state["left_out"], state["captions"]) == (200, [2, 100], {"caption": [0]})
    assert read(server, 0, 2) == [
        {"row": 0, "caption": "<b>new</b> ü", "left_out": False, "own": captions[0]},
        {"row": 2, "caption": captions[2], "left_out": True},
    ]
    status, state = edit(server, take_back=[2, 100], column="caption", captions={"0": None})
    assert (status, state["left_out"], state["captions"]) == (200, [], {})
    assert [path.name for path in parquet.parent.iterdir()] == ["pairs.parquet"]


def test_pictures_of_a_row(server: Server, parquet: Path) -> None:
    query = "resource=look/pairs.parquet&column=control&column=target"
    control, target, other = (
        ask(server, f"/edit_trainer/row_picture?{query}&row={row}&of={column}&px=48")
        for row, column in ((3, "control"), (3, "target"), (4, "target"))
    )
    assert control == target != other
    assert Image.open(BytesIO(control[1])).size == (48, 48)
    for wrong in ("row=128&of=target", "row=1&of=caption", "row=1&of=no"):
        assert ask(server, f"/edit_trainer/row_picture?{query}&{wrong}")[0] == 404
    assert ask(server, f"/edit_trainer/row_picture?{query}&row=x&of=target")[0] == 400


def test_rows_that_look_wrong_are_found_in_the_background(server: Server, parquet: Path) -> None:
    found: list[Any] = []
    end = time.monotonic() + 60
    while True:
        query = f"resource=look/pairs.parquet&{COLUMNS}&from={len(found)}"
        status, body = ask(server, f"/edit_trainer/row_warnings?{query}")
        answer = json.loads(body)
        found += answer["found"]
        assert status == 200
        assert time.monotonic() < end
        if answer["done"]:
            break
        time.sleep(0.1)
    assert answer["checked"] == 128
    assert [row for row, codes, _ in found if "same" in codes] == [3]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_a_parquet_is_closed_when_nobody_looks_at_it(server: Server, parquet: Path) -> None:
    """Another program could not replace it on Windows."""

    def is_open() -> bool:
        links = Path(f"/proc/{server.process.pid}/fd").iterdir()
        return any(link.is_symlink() and link.readlink() == parquet for link in links)

    many = pa.concat_tables([pq.read_table(parquet)] * 40)
    pq.write_table(many, parquet, use_dictionary=False)
    assert parquet.stat().st_size > HELD_BYTES
    read(server, 0)
    ask(server, "/edit_trainer/row_picture?resource=look/pairs.parquet&column=control&column=target&row=1&of=target")
    assert ask(server, f"/edit_trainer/row_warnings?resource=look/pairs.parquet&{COLUMNS}")[0] == 200
    assert is_open()
    end = time.monotonic() + 60
    while is_open():
        assert time.monotonic() < end
        time.sleep(0.5)
    assert read(server, 5)[0]["row"] == 5


def test_an_edit_makes_the_node_run_again_on_other_rows(server: Server, parquet: Path) -> None:
    graph = training(run_name="curated", params={"steps": 1, "sample_every": 1})
    node = next(name for name, entry in graph.items() if entry["class_type"] == "EditTrainerLoadDataset")
    graph[node]["inputs"]["resource"] = "look/pairs.parquet"
    assert node in server.run(graph).executed()
    assert node not in server.run(graph).executed()
    assert edit(server, leave_out=[3])[0] == 200
    assert node in server.run(graph).executed()
    settings = [path.name for path in (server.output / "edit_trainer").glob("curated*")]
    assert sorted(settings) == ["curated", "curated-2"], "another dataset, so another run"


def test_only_the_pages_own_edits_of_parquets_in_the_input_folder_are_written(server: Server, parquet: Path) -> None:
    outside, output = server.base / "secret.parquet", server.output / "there.parquet"
    for path in (outside, output):
        path.write_bytes(EXAMPLE.read_bytes())
    for resource in ("edit_trainer_example.parquet", "../secret.parquet", str(outside), str(output), "gone.parquet"):
        status, answer = edit(server, resource, leave_out=[1])
        assert (status, list(answer)) == (400, ["error"]), resource
    for path in (EXAMPLE, outside, output):
        assert not path.with_name(path.name + ".edits.json").exists()
    body = json.dumps({"leave_out": [1]}).encode()
    for header in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in ("row_edits", "rows", "row_picture", "row_warnings"):
            data = body if path == "row_edits" else None
            assert ask(server, f"/edit_trainer/{path}?resource=look/pairs.parquet", data, **header)[0] == 403
    assert not parquet.with_name("pairs.parquet.edits.json").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"leave_out": 1}',
        b'{"leave_out": ["1"]}',
        b'{"leave_out": [true]}',
        b'{"leave_out": [128]}',
        b'{"column": "caption", "captions": {"-1": "x"}}',
        b'{"column": "caption", "captions": {"1": 7}}',
        b'{"captions": {"1": "x"}}',
        b'{"column": "caption", "captions": {"1": "' + b"x" * 70_000 + b'"}}',
        b'{"leave_out": [' + b"1" * 5000 + b"]}",
        b"[" * 100_000,
        b" " * (5 << 20),
    ],
)
def test_edits_in_another_form_are_refused(server: Server, parquet: Path, body: bytes) -> None:
    status, answer = ask(server, "/edit_trainer/row_edits?resource=look/pairs.parquet", body)
    assert (status, list(json.loads(answer))) == (400, ["error"])
    assert not parquet.with_name("pairs.parquet.edits.json").exists()


def test_edits_of_other_rows_are_told_of_and_discarded(server: Server, parquet: Path) -> None:
    assert edit(server, leave_out=[1])[0] == 200
    pq.write_table(pq.read_table(parquet).slice(1), parquet)
    state = server.get("/edit_trainer/row_edits", resource="look/pairs.parquet")
    assert "was written again" in state["fault"]
    assert edit(server, leave_out=[2])[0] == 400
    status, state = edit(server, discard=True)
    assert (status, state["fault"], state["rows"]) == (200, "", 127)
    assert not parquet.with_name("pairs.parquet.edits.json").exists()


def test_rows_of_shards_are_numbered_through_and_edited_in_their_files(server: Server) -> None:
    folder = server.base / "input" / "shards"
    folder.mkdir()
    table = pq.read_table(EXAMPLE)
    for number in range(3):
        pq.write_table(table.slice(number * 40, 40), folder / f"train-{number}.parquet")
    state = server.get("/edit_trainer/row_edits", resource="shards")
    assert (state["rows"], state["editable"]) == (120, True)
    status, state = edit(server, "shards", leave_out=[1, 41, 119], column="caption", captions={"40": "edited"})
    assert (status, state["left_out"], state["captions"]) == (200, [1, 41, 119], {"caption": [40]})
    found = [json.loads(path.read_text())["left_out"] for path in sorted(folder.glob("*.edits.json"))]
    assert found == [[1], [1], [39]]
    (row,) = server.get("/edit_trainer/rows", resource="shards", caption_column="caption", rows="40")["items"]
    assert (row["caption"], row["own"]) == ("edited", table["caption"][40].as_py())
    query = "resource=shards&column=control&column=target&row=100&of=target"
    one = ask(server, f"/edit_trainer/row_picture?{query}")
    assert one[0] == 200
    assert edit(server, "shards", leave_out=[120])[0] == 400
