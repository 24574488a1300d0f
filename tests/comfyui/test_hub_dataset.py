"""A dataset on the hub in a real server: nothing is downloaded before the graph runs, and nothing twice."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset_hub import dataset_hub
from ..trainer.edits import png
from .graphs import EXAMPLE, node
from .server import Server

ADDRESS = "hf://datasets/someone/edits/data"


def shard(*numbers: int) -> bytes:
    pictures = {"control": [png(n) for n in numbers], "target": [png(n + 50) for n in numbers]}
    stream = io.BytesIO()
    pq.write_table(pa.table({"caption": [f"{n}" for n in numbers], **pictures}), stream)
    return stream.getvalue()


def notes(server: Server, resource: str) -> list[str]:
    return [note.get("code", note.get("text")) for note in server.get(
        "/edit_trainer/dataset_notes", resource=resource, caption_column="caption", control_image_column="control",
        image_column="target",
    )["notes"]]  # fmt: skip


def test_a_dataset_on_the_hub_is_downloaded_when_the_graph_runs(comfyui: Path, tmp_path: Path) -> None:
    with dataset_hub() as hub:
        names = [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
        hub.repos["someone/edits"] = {"main": {names[0]: shard(1, 2), names[1]: shard(3)}}
        server = Server(comfyui, tmp_path / "base", variables=hub.environment(tmp_path / "cache"))
        try:
            hub.requests.clear()
            assert notes(server, ADDRESS) == ["notDownloaded"]
            assert "is not downloaded yet" in server.get("/edit_trainer/columns", resource=ADDRESS)["error"]
            assert hub.requests == []
            dataset = node("EditTrainerLoadDataset", **EXAMPLE | {"resource": ADDRESS})
            prompt = {"dataset": dataset, "report": node("PreviewAny", source=["dataset", 2])}
            assert "data: 3 rows, all usable" in server.run(prompt).text("report")
            assert sorted(hub.downloads()) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
            assert server.get("/edit_trainer/columns", resource=ADDRESS)["rows"] == 3
            assert len(server.get("/edit_trainer/first_rows", resource=ADDRESS, column="control")["control"]) == 2
            assert notes(server, ADDRESS) == []
            result = server.run(
                prompt | {"dataset": node("EditTrainerLoadDataset", **EXAMPLE | {"resource": "hf://x"})}
            )
            assert result.status == "refused"
            assert "is not an address of a dataset" in str(result.details)
            dataset["inputs"]["resource"] = "hf://datasets/someone/none"
            result = server.run(prompt)
            assert "is not found on the Hugging Face hub" in result.details["exception_message"]
            assert len(hub.downloads()) == 2
        finally:
            server.close()
