"""Datasets on the hub, which a server of this machine stands in for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import hf_hub_download

from trainer.cli.main import main
from trainer.data.hub_files import HubAddress, NotDownloaded, find_on_hub
from trainer.data.load_request import load_request, resolve_resource
from trainer.errors import BadInput, RunFailed

from ..dataset_hub import DatasetHub, dataset_hub, use_in_this_process
from .edits import NAMES, assert_rows_belong_together, opened, png

SHARD = "data/train-{:05}-of-00002.parquet"


def parquet(*numbers: int) -> bytes:
    columns = {
        "prompt": [f"edit {number}" for number in numbers],
        "before": [png(number) for number in numbers],
        "after": [png(number + 1000) for number in numbers],
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DatasetHub]:
    with dataset_hub() as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        files = {SHARD.format(0): parquet(0, 1), SHARD.format(1): parquet(2), "README.md": b"x"}
        old = {"data/train-00000-of-00001.parquet": parquet(0)}
        hub.repos["someone/edits"] = {
            "main": files,
            "v1": old,
            "refs/convert/parquet": {"default/a.parquet": parquet(0)},
        }
        yield hub


@pytest.mark.parametrize(
    ("address", "rows"),
    [
        ("hf://datasets/someone/edits", 3),
        ("hf://datasets/someone/edits/data", 3),
        ("hf://datasets/someone/edits/data/train-*.parquet", 3),
        ("hf://datasets/someone/edits@main/data/train-00000-of-00002.parquet", 2),
        ("hf://datasets/someone/edits@v1/data", 1),
        ("hf://datasets/someone/edits@refs%2Fconvert%2Fparquet/default", 1),
    ],
)
def test_files_are_downloaded_once_for_each_revision(hub: DatasetHub, address: str, rows: int) -> None:
    assert_rows_belong_together(opened(resolve_resource(address)), list(range(rows)))
    downloaded = hub.downloads()
    assert len(downloaded) == len(set(downloaded)) and "README.md" not in downloaded
    assert opened(resolve_resource(address)).fingerprint() == opened(find_on_hub(address)).fingerprint()
    assert hub.downloads() == downloaded
    hub.broken = True
    assert len(opened(find_on_hub(address, download=False))) == rows
    with pytest.raises(RunFailed, match=r"Hugging Face hub refused|cannot be downloaded"):
        find_on_hub(address)


def test_a_new_revision_is_downloaded_beside_the_old_one(hub: DatasetHub) -> None:
    address = "hf://datasets/someone/edits/data"
    first = find_on_hub(address)
    hub.repos["someone/edits"]["main"][SHARD.format(1)] = parquet(2, 3)
    second = find_on_hub(address)
    assert (len(opened(first)), len(opened(second))) == (3, 4)
    assert find_on_hub(address, download=False) == second
    assert hub.downloads().count("train-00000-of-00002.parquet") == 1, "it is the same file"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://datasets/someone/none", "is not found on the Hugging Face hub"),
        ("hf://datasets/someone/edits@v9", 'no revision "v9"'),
        ("hf://datasets/someone/edits/data/test-*.parquet", "no parquet file of this name"),
        ("hf://datasets/someone/edits/none.parquet", "no parquet file of this name"),
        ("hf://datasets/someone/edits/../x", "is not an address of a dataset"),
        ("hf://models/someone/edits", "is not an address of a dataset"),
        ("hf://datasets/someone", "is not an address of a dataset"),
    ],
)
def test_what_is_not_there_is_said(hub: DatasetHub, address: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        resolve_resource(address)
    assert hub.downloads() == []


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/../..",
        "hf://datasets/someone/edits@..%2F..%2Fx/data",
        "hf://datasets/someone/edits@%2Fx/data",
        "hf://datasets/someone/edits@%0a/data",
        "hf://datasets/someone/edits/..\\..\\x.parquet",
        "hf://datasets/someone/edits/\\\\server\\x.parquet",
        "hf://datasets/someone/edits/C:/x.parquet",
        "hf://datasets/someone/edits//x.parquet",
        "hf://datasets/someone/edits/a\0b.parquet",
        "hf://datasets/someone/edits/" + "x" * 1000,
    ],
)
def test_an_address_never_leads_out_of_the_cache(hub: DatasetHub, address: str, download: bool) -> None:
    with pytest.raises(BadInput, match="is not an address of a dataset") as error:
        find_on_hub(address, download)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert hub.requests == []


def test_files_of_a_repository_that_lead_out_of_it_are_none_of_the_data_set(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repos["someone/edits"]["main"] = {"../../../../up.parquet": parquet(0, 1), "data/a.parquet": parquet(1, 3)}
    assert len(opened(find_on_hub("hf://datasets/someone/edits"))) == 2
    assert hub.downloads() == ["a.parquet"] and not list(tmp_path.rglob("up.parquet"))


def test_without_download_nothing_is_asked(hub: DatasetHub) -> None:
    request = {
        "resource": "hf://datasets/someone/edits/data",
        "base_model": "tiny/flux-kontext",
        "script_type": "image_editing",
        "training_params": NAMES,
    }
    with pytest.raises(NotDownloaded, match="is not downloaded yet"):
        load_request(request, download=False)
    with pytest.raises(BadInput, match="steps"):
        load_request(request | {"training_params": NAMES | {"steps": 0}}, download=False)
    assert hub.requests == []
    find_on_hub("hf://datasets/someone/edits/data/train-00000-of-00002.parquet")
    with pytest.raises(NotDownloaded):  # a copy of a part is not the dataset
        load_request(request, download=False)
    assert load_request(request)[1] == load_request(request, download=False)[1]


def test_pictures_beside_the_parquet_are_asked_for_in_one_message(
    hub: DatasetHub, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    names = [{"prompt": "x", "before": f"img/{n}.png", "after": f"img/{n + 1000}.png"} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(names), stream)
    pictures = {f"data/img/{n}.png": png(n) for n in (0, 1, 1000, 1001)}
    hub.repos["someone/edits"]["main"] = {"data/edits.parquet": stream.getvalue()} | pictures
    address = "hf://datasets/someone/edits/data"
    assert main(["inspect", address, *_columns()]) == 2
    said = capsys.readouterr().err
    command = f"hf download someone/edits --repo-type dataset --revision {hub.commit('someone/edits', 'main')}"
    assert "row 0" in said and "files beside its parquet" in said and command in said
    assert not [name for name in hub.downloads() if name.endswith(".png")]
    for name in pictures:
        hf_hub_download("someone/edits", name, repo_type="dataset", revision=command.rpartition(" ")[2])
    code = main(["inspect", address, *_columns()])
    assert code == 0, f"what the command does is the cure: {capsys.readouterr().err}"


def test_a_cut_off_copy_is_refused(hub: DatasetHub) -> None:
    del hub.repos["someone/edits"]["main"][SHARD.format(1)]
    with pytest.raises(BadInput, match=r'1 of the 2 files "train-\.\.\.": number 1 is missing'):
        find_on_hub("hf://datasets/someone/edits")


def test_the_command_inspects_it(hub: DatasetHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "hf://datasets/someone/edits/data", *_columns()]) == 0
    assert "data: 3 rows, all usable" in capsys.readouterr().out
    assert main(["inspect", "hf://datasets/someone/none"]) == 2


def test_the_parts_of_an_address() -> None:
    assert HubAddress.parse("hf://datasets/a/b.c@v1/d/e.parquet") == HubAddress("a/b.c", "v1", "d/e.parquet")
    assert str(HubAddress.parse("hf://datasets/a/b/")) == "hf://datasets/a/b@main"


def _columns() -> list[str]:
    return [f"--{field.replace('_', '-')}={name}" for field, name in NAMES.items()]
