"""Folders and zips of pictures as people have them, packed right or refused by name."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.cli.main import main
from trainer.errors import BadInput
from trainer.events import drain
from trainer.packing.pack import PackOptions, pack

from .edits import png
from .packed_sets import BOTH, Files, in_folder, in_zip, jpeg, packed, pair, refused


@BOTH
def test_two_folders_with_texts_beside_the_targets_or_the_controls(put: Callable, tmp_path: Path) -> None:
    files = pair("b", 2) | pair("a", 1) | {"target/a.txt": b"one\n", "control/b.txt": "\ufefftwo".encode()}
    junk = {"target/.DS_Store": b"x", "__MACOSX/target/._a.png": b"x", "control/Thumbs.db": b"x", "readme.md": b"x"}
    assert packed(put(tmp_path, files | junk)) == [(1, 1001, "one"), (2, 1002, "two")]


@BOTH
def test_other_extensions_are_partners_and_files_keep_their_bytes(put: Callable, tmp_path: Path) -> None:
    files = {"control/a.jpg": jpeg(3), "target/a.PNG": png(4), "target/a.txt": b"x"}
    packed(put(tmp_path, files))
    (row,) = pq.read_table(tmp_path / "out" / "edits.parquet").to_pylist()
    assert row == {"control": files["control/a.jpg"], "target": files["target/a.PNG"], "caption": "x"}


@BOTH
def test_three_controls_and_folders_in_folders(put: Callable, tmp_path: Path) -> None:
    files = {
        f"set/{role}/x/{name}.png": png(number + place)
        for role, number in (("control", 0), ("control_2", 10), ("control_3", 20), ("target", 30))
        for place, name in enumerate(("a", "b"))
    }
    source = put(tmp_path, files)
    source = source if source.is_file() else source / "set"
    assert packed(source, caption="all") == [(0, 10, 20, 30, "all"), (1, 11, 21, 31, "all")]
    assert pq.read_schema(source.parent / "out" / "edits.parquet").names == [
        "control", "control_2", "control_3", "target", "caption",
    ]  # fmt: skip


@BOTH
def test_the_zips_of_hosted_trainers(put: Callable, tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("one", "two.five")):
        files |= {f"{name}_start.png": png(number), f"{name}_start2.png": png(10 + number)}
        files |= {f"{name}_end.png": png(number + 1000), f"{name}.txt": name.encode()}
    assert packed(put(tmp_path, files)) == [(0, 10, 1000, "one"), (1, 11, 1001, "two.five")]


@pytest.mark.parametrize("last", ["gone", "cut off"])
def test_a_picture_that_changes_while_it_is_packed_is_named(last: str, tmp_path: Path) -> None:
    source, out = in_folder(tmp_path, pair("a", 1) | pair("b", 2)), tmp_path / "edits.parquet"
    packing = pack(source, out, PackOptions(caption="x"))
    while next(packing).done < 2:
        pass
    (source / "target" / "b.png").write_bytes(b"") if last == "cut off" else (source / "target" / "b.png").unlink()
    with pytest.raises(BadInput, match=r"set cannot be packed: target/b\.png: "):
        drain(packing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@BOTH
def test_names_in_both_unicode_forms_are_one_name(put: Callable, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "\u00c9t\u00e9 \u76ee") for form in ("NFC", "NFD"))
    files = {f"control/{composed}.png": png(1), f"target/{decomposed}.png": png(2), f"target/{composed}.txt": b"x"}
    assert packed(put(tmp_path, files)) == [(1, 2, "x")]


@BOTH
def test_folders_and_ends_of_other_names(put: Callable, tmp_path: Path) -> None:
    folders = {"before/a.png": png(1), "After/a.png": png(2), "ref/a.png": png(3)}
    options = {"controls": ("before", "ref"), "target": "after", "caption": "x"}
    assert packed(put(tmp_path, folders), **options) == [(1, 3, 2, "x")]
    (tmp_path / "nested").mkdir()
    nested = {"a.png": png(1), "x/after/a.png": png(2), "x/a.png": png(3)}
    options = {"controls": ("x",), "target": "x/after", "caption": "x"}
    assert packed(put(tmp_path / "nested", nested), **options) == [(3, 2, "x")]
    (tmp_path / "ends").mkdir()
    ends = {"a-in.png": png(1), "a-out.png": png(2)}
    assert packed(put(tmp_path / "ends", ends), controls=("-in",), target="-out", caption="x") == [(1, 2, "x")]


FAULTS: dict[str, tuple[Files, tuple[str, ...]]] = {
    "a missing control": (
        pair("a", 1) | {"target/lonely.png": png(2)},
        ("target/lonely.png: has no partner in control",),
    ),
    "a missing target": (pair("a", 1) | {"control/lonely.png": png(2)}, ("control/lonely.png: has no partner",)),
    "a missing third control": (
        pair("a", 1) | {"control_2/a.png": png(2), "control_3/b.png": png(3)},
        ("control_3/b.png: has no partner in control", "a.png: has no partner in control_3"),
    ),
    "a gap in the controls": (pair("a", 1) | {"control_3/a.png": png(2)}, ("no pictures in control_2",)),
    "upper and lower case": (
        {"control/cat.png": png(1), "target/Cat.png": png(2)},
        ("target/Cat.png: has no partner in control", '"control/cat.png" differs in upper and lower case'),
    ),
    "two extensions for one name": (
        pair("a", 1) | {"target/a.jpg": jpeg(2)},
        ("target/a.jpg", "target/a.png", "one name twice"),
    ),
    "both unicode forms in one folder": (
        pair("\u00e9", 1) | {f"target/{unicodedata.normalize('NFD', chr(0xE9))}.png": png(2)},
        ("one name twice",),
    ),
    "a caption alone": (pair("a", 1) | {"target/b.txt": b"x"}, ("target/b.txt: is a caption without pictures",)),
    "no caption": (pair("a", 1) | pair("b", 1) | {"target/a.txt": b"x"}, ("target/b.png: has no caption",)),
    "two captions": (
        pair("a", 1) | {"target/a.txt": b"x", "control/a.txt": b"y"},
        ("have different captions for one pair",),
    ),
    "a caption that is not utf-8": (pair("a", 1) | {"target/a.txt": b"\xff\xfe"}, ("target/a.txt: is not UTF-8",)),
    "a caption in utf-16": (pair("a", 1) | {"target/a.txt": "x".encode("utf-16-le")}, ("a.txt: holds zero bytes",)),
    "a caption with a zero": (
        pair("a", 1) | {"metadata.jsonl": b'{"file_name": "a", "caption": "x\\u0000"}'},
        ('metadata.jsonl: line 1: the caption "x?" holds a zero byte',),
    ),
    "an empty table": (pair("a", 1) | {"metadata.csv": b""}, ("set", "metadata.csv: ")),
    "a table without a header": (
        pair("a", 1) | {"metadata.csv": b"a.png,hello\n"},
        ("metadata.csv: has no column of the name", 'it has "a.png", "hello"'),
    ),
    "a line without its end": (
        pair("a", 1) | {"metadata.csv": b"file_name,caption\na.png\n"},
        ("metadata.csv: line 2 has 1 of 2 columns",),
    ),
    "a caption that is a number": (
        pair("a", 1) | {"metadata.jsonl": b'{"file_name": "a", "caption": 3}'},
        ('metadata.jsonl: line 1: its caption "3" is not text',),
    ),
    "a damaged picture": (
        pair("a", 1) | {"target/a.png": png(2)[:60], "target/a.txt": b"x"},
        ("target/a.png: the image is damaged",),
    ),
    "a picture of a telephone": (pair("a", 1) | {"control/b.heic": b"x"}, ("control/b.heic: .heic is not read",)),
    "a table with a stranger": (
        pair("a", 1) | {"metadata.csv": b"file_name,text\na.png,x\nz.png,y\n"},
        ('metadata.csv, line 3: there is no pair named "z.png"',),
    ),
    "a picture of no role": (
        {"a_start.png": png(1), "a_end.png": png(2), "b.png": png(3), "a.txt": b"x"},
        ("b.png: its name ends in none of _start, _end",),
    ),
    "a missing second start": (
        {name: png(1) for name in ("a_start.png", "a_start2.png", "a_end.png", "b_start.png", "b_end.png")},
        ("has no partner in _start2",),
    ),
    "pictures without a system": ({"1.png": png(1), "2.png": png(2)}, ('no folder "target"',)),
    "nothing": ({"notes.md": b"x"}, ("it holds no pictures",)),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_named_and_nothing_is_written(put: Callable, name: str, tmp_path: Path) -> None:
    files, words = FAULTS[name]
    if "unicode" in name and put is in_folder and sys.platform == "darwin":
        pytest.skip("one file on this system")
    refused(put(tmp_path, files), *words)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"controls": ("",), "target": "target"}, "is empty"),
        ({"controls": ("/",)}, "is empty"),
        ({"controls": ("target",)}, '"target" is named twice'),
        ({"controls": ("Control/", "control")}, "is named twice"),
        ({"controls": ("_end",), "target": "_end"}, '"_end" is named twice'),
        ({"caption": "a\0b"}, 'caption: "a?b" holds a zero byte'),
        ({"caption": "x" * 70_000}, "is longer than 65,536 bytes"),
    ],
)
def test_options_that_cannot_be_meant(options: dict, word: str, tmp_path: Path) -> None:
    refused(in_folder(tmp_path, pair("a", 1)), word, **{"caption": "x", **options})


def test_paths_start_at_the_parquet(tmp_path: Path) -> None:
    source = in_folder(tmp_path, pair("a", 1) | pair("\u00e9 b", 2))
    options = PackOptions(caption="x", images="paths")
    drain(pack(source, tmp_path / "edits.parquet", options))
    rows = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    assert [row["control"] for row in rows] == ["set/control/a.png", "set/control/\u00e9 b.png"]
    with pytest.raises(BadInput, match="start at the parquet's folder"):
        drain(pack(source, tmp_path / "elsewhere" / "edits.parquet", options))
    with pytest.raises(BadInput, match="of a zip have no paths"):
        drain(pack(in_zip(tmp_path, pair("a", 1)), tmp_path / "edits.parquet", options))
    assert not (tmp_path / "elsewhere").exists()


def test_a_parquet_whose_rows_were_edited_is_not_replaced_by_other_rows(tmp_path: Path) -> None:
    out, options = tmp_path / "edits.parquet", PackOptions(caption="x")
    source = in_folder(tmp_path, pair("b", 1))
    drain(pack(source, out, options))
    os.utime(out, ns=(10**18, 10**18))
    (tmp_path / "edits.parquet.edits.json").write_text("{}")
    drain(pack(source, out, options))
    assert out.stat().st_mtime_ns == 10**18, "nothing has changed"
    before = out.read_bytes()
    in_folder(tmp_path, pair("a", 2))
    with pytest.raises(BadInput, match=r"edits\.parquet\.edits\.json beside it has edits"):
        drain(pack(source, out, options))
    assert out.read_bytes() == before
    (tmp_path / "edits.parquet.edits.json").unlink()
    assert drain(pack(source, out, options)).rows == 2


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be made there")
def test_a_name_that_a_parquet_would_misread_is_refused(tmp_path: Path) -> None:
    source = in_folder(tmp_path, {"control/a\\b.png": png(1), "target/a\\b.png": png(2)})
    with pytest.raises(BadInput, match="cannot have a path of this name"):
        drain(pack(source, tmp_path / "edits.parquet", PackOptions(caption="x", images="paths")))


@pytest.mark.slow
def test_row_groups_are_of_bounded_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((1600, 1600), 90).save(stream, "PNG", compress_level=0)
    files = {f"{role}/{n}.png": stream.getvalue() for role in ("control", "target") for n in range(9)}
    drain(pack(in_folder(tmp_path, files), tmp_path / "edits.parquet", PackOptions(caption="x")))
    metadata = pq.read_metadata(tmp_path / "edits.parquet")
    sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    assert len(sizes) == 3 and max(sizes) < 24 * 2**20


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = in_folder(tmp_path, pair("a", 1))
    out = tmp_path / "new" / "edits.parquet"
    assert main(["pack", str(source), "--out", str(out)]) == 2
    assert "target/a.png: has no caption" in capsys.readouterr().err and not out.parent.exists()
    assert main(["pack", str(source), "--out", str(out), "--caption", "add a frame"]) == 0
    assert "Packed 1 pair into" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert '"control_image_column": "control"' in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert main(["pack", str(source), "--out", str(tmp_path / "edits.csv")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(number: int, code: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((1600, 1600), 90).save(stream, "PNG", compress_level=0)
    source = in_folder(tmp_path, {f"{role}/0.png": stream.getvalue() for role in ("control", "target")})
    for role in ("control", "target"):
        for n in range(1, 60):
            os.link(source / role / "0.png", source / role / f"{n}.png")
    out = tmp_path / "out" / "edits.parquet"
    command = [sys.executable, "-m", "trainer", "pack", str(source), "--out", str(out), "--caption", "x"]
    # A job in the background ignores Ctrl-C, one under nohup the hang-up, and so would its children.
    default = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, preexec_fn=default
    ) as process:
        end = time.monotonic() + 60
        while not list(out.parent.glob(".writing-*")) and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == code and "Traceback" not in said, said
    assert not list(out.parent.iterdir())


def test_a_folder_is_read_no_further_than_its_links_allow(tmp_path: Path) -> None:
    source = in_folder(tmp_path, pair("a", 1) | {"target/a.txt": b"x"})
    (tmp_path / "secret.png").write_bytes(png(5))
    (source / "target" / "b.png").symlink_to(tmp_path / "secret.png")
    (source / "control" / "b.png").write_bytes(png(5))
    refused(source, "target/b.png: is a link that leaves the images folder", caption="x")


def random_files(pick: random.Random) -> Files:
    """Pictures whose number is that of the pair that their name means, with what people get wrong."""
    files = {}
    layout = pick.choice((("control/{}", "target/{}"), ("x/control/{}", "x/target/{}"), ("{}_start", "{}_end")))
    for number, name in enumerate(pick.sample(["a", "b.c", "\u00e9t\u00e9", "\u65e5", "d e", "a_2", "Z"], 3)):
        for role, place in enumerate(layout):
            name = unicodedata.normalize(pick.choice(("NFC", "NFD")), name)
            name = name.swapcase() if pick.random() < 0.05 else name
            for _ in range(pick.choices((1, 0, 2), (30, 1, 1))[0]):
                files[place.format(name) + pick.choice((".png", ".PNG", ".jpg", ".webp"))] = png(number + 1000 * role)
        if pick.random() < 0.9:
            files[pick.choice(layout).format(name) + ".txt"] = f"edit {number}".encode()
    return files


@pytest.mark.slow
def test_folders_and_zips_at_random_are_packed_right_or_refused(tmp_path: Path) -> None:
    """No pair is ever made of pictures with different names, and what cannot be packed leaves nothing behind."""
    results = Counter()
    for seed in range(80):
        files = random_files(random.Random(seed))
        place = tmp_path / str(seed)
        place.mkdir()
        rows = []
        for put in (in_folder, in_zip):
            source = put(place, files)
            source = source / "x" if (source / "x").is_dir() else source
            try:
                rows.append(packed(source))
                results["packed"] += 1
            except BadInput as error:
                assert "cannot be packed:\n  - " in str(error)
                rows.append(None)
                results["refused"] += 1
            for control, target, caption in rows[-1] or ():
                assert target == control + 1000 and caption == f"edit {control}"
            shutil.rmtree(source.parent / "out", ignore_errors=True)
        assert rows[0] == rows[1]
    assert min(results.values()) > 20
