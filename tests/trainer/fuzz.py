"""Files of strangers, mutated at random: whatever they hold, they are read or refused, soon and in bounded memory.

`python -m tests.trainer.fuzz --minutes 10` runs for longer than the suite does and prints the counts.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from trainer.config.columns import Columns
from trainer.data.columns import first_look, guess_from_kinds
from trainer.data.dataset import open_dataset
from trainer.data.images import EncodedImage
from trainer.data.load_request import load_request
from trainer.data.parquet import parquet_columns
from trainer.errors import BadInput, outcome
from trainer.events import drain
from trainer.packing.pack import pack
from trainer.single_file.header import open_weights
from trainer.single_file.quantization_metadata import read_markers

from .edits import NAMES, png
from .hostile_pictures import encoded
from .peak import peak_memory

MAX_SECONDS, MAX_BYTES = 10, 2**30
PACKED_NAMES = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}

Case = tuple[str, bytes]
"""Kind of file, and its content."""


def parquets(folder: Path) -> Iterator[bytes]:
    """Datasets in the encodings and types that writers use."""
    rows = 40
    pictures = [png(number) for number in range(rows)]
    structs = [{"bytes": picture, "path": f"{number}.png"} for number, picture in enumerate(pictures)]
    texts = [f"make it {number % 5}" for number in range(rows)]
    for before, options in (
        (pictures, {}),
        (structs, {"compression": "zstd", "data_page_version": "2.0"}),
        ([None, "in/a.png", "https://127.0.0.1/b.png", "../c.png"] * 10, {"row_group_size": 7}),
        (pictures, {"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}),
        (pa.array(texts).dictionary_encode(), {"compression": "gzip", "write_page_index": True}),
    ):
        pq.write_table(pa.table({"prompt": texts, "before": before, "after": pictures}), folder / "a", **options)
        yield (folder / "a").read_bytes()


def pictures() -> Iterator[bytes]:
    y, x = np.mgrid[0:48, 0:64]
    picture = Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True, "exif": exif}),
        ("GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("AVIF", {"exif": exif}),
    ):
        yield encoded(picture.convert("RGB"), kind, **options)
    yield encoded(Image.fromarray((x * 1000).astype(np.uint16)), "PNG")
    yield encoded(picture.convert("P"), "PNG", transparency=3)


def gguf_file() -> bytes:
    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    def number(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, "little")

    fields = text(b"general.alignment") + number(4) + number(32)
    fields += text(b"tags") + number(9) + number(8) + number(2, 8) + text(b"a") + text(b"bc")
    fields += text(b"comfy.gguf.orig_shape.a.weight") + number(9) + number(5) + number(2, 8) + number(8) + number(8)
    tensor = text(b"a.weight") + number(2) + number(8, 8) * 2 + number(0) + number(0, 8)
    head = b"GGUF" + number(3) + number(1, 8) + number(3, 8) + fields + tensor
    return head + bytes(-len(head) % 32 + 256)


def requests(folder: Path) -> Iterator[bytes]:
    (folder / "edits.parquet").write_bytes(next(parquets(folder)))
    params = {**NAMES, "steps": 3, "learning_rate": 1e-4, "samples": [{"ctrl_img_url": "a.png", "prompt": "b"}]}
    request = {
        "resource": str(folder / "edits.parquet"),
        "base_model": "Qwen/Qwen-Image-Edit",
        "training_params": params,
    }
    yield json.dumps(request | {"script_type": "image_editing"}).encode()
    several = params | {"control_image_columns": [params["control_image_column"]]}
    several["samples"] = [{"ctrl_img_url": ["a.png"], "prompt": "b"}]
    del several["control_image_column"]
    hosted = {"script_type": "multi_image_editing", "is_public": True, "oxen_model_path": "a/b"}
    yield json.dumps(request | hosted | {"training_params": several}).encode()
    yield b'{"resource": ' + b"[" * 3000 + b"1" * 5000 + b"]" * 3000 + b"}"


def arrow_files() -> Iterator[bytes]:
    """Arrow streams and files as the `datasets` library and others write them."""
    rows = 20
    pictures = [png(number) for number in range(rows)]
    structs = [{"bytes": picture, "path": f"{number}.png"} for number, picture in enumerate(pictures)]
    texts = [f"make it {number % 5}" for number in range(rows)]
    for open_writer, before in ((pa.ipc.new_stream, structs), (pa.ipc.new_file, pictures), (pa.ipc.new_stream, texts)):
        table, stream = pa.table({"prompt": texts, "before": before, "after": structs}), io.BytesIO()
        with open_writer(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        yield stream.getvalue()


def zips() -> Iterator[bytes]:
    """Zips of pictures in the layouts and compressions that people have."""
    for kind, names in (
        (zipfile.ZIP_DEFLATED, ("control/a.png", "control_2/a.png", "target/a.png", "target/a.txt")),
        (zipfile.ZIP_STORED, ("a_start.png", "a_start2.png", "a_end.png", "a.txt")),
        (zipfile.ZIP_DEFLATED, ("x/control/\u00e9.png", "x/target/\u00e9.png", "x/metadata.csv")),
    ):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            archive.comment = b"of a program"
            for number, name in enumerate(names):
                table = b"file_name,text\n\xc3\xa9.png,x\n" if name.endswith("csv") else b"make it red"
                archive.writestr(name, png(number, (40, 30)) if name.endswith("png") else table)
        yield stream.getvalue()


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Good files of every kind."""
    weights = {"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(2, dtype=torch.bfloat16)}
    marker = {"a.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)}
    quantized = {"_quantization_metadata": '{"layers": {"a": {"format": "int8_tensorwise"}}}'}
    return {
        "parquet": list(parquets(folder)),
        "picture": list(pictures()),
        "safetensors": [save(weights), save(weights, {"a": "b"}), save(weights | marker), save(weights, quantized)],
        "gguf": [gguf_file()],
        "request": list(requests(folder)),
        "zip": list(zips()),
        "arrow": list(arrow_files()),
    }


def mutated(data: bytes, pick: random.Random) -> bytes:
    """Some bytes changed, as disks, networks and attackers change them."""
    out = bytearray(data)
    for _ in range(pick.choice((1, 1, 2, 4, 16))):
        # Headers and footers are where numbers are.
        at = pick.choice(
            (pick.randrange(len(out)), pick.randrange(min(len(out), 200)), -1 - pick.randrange(min(len(out), 900)))
        )
        at %= len(out)
        change = pick.randrange(8)
        if change < 3:
            out[at] ^= 1 << pick.randrange(8)
        elif change == 3:
            out[at] = pick.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif change == 4:
            size = pick.choice((2, 4, 8))
            out[at : at + size] = pick.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif change == 5:
            length = pick.randrange(1, 64)
            out[at:at] = out[at : at + length] * pick.choice((1, 2, 50))
        elif change == 6:
            del out[at : at + pick.randrange(1, 64)]
        else:
            del out[pick.randrange(len(out) // 2, len(out)) :]
        if not out:
            return b""
    return bytes(out)


def read_parquet(path: Path, names: Mapping[str, str] = NAMES) -> None:
    kinds, _ = first_look(path)
    guess_from_kinds(kinds)
    parquet_columns(path)
    for optional in (False, True):
        opening = open_dataset(path, Columns.from_fields(names), bad_rows="skip", allow_no_control=optional)
        dataset = drain(opening)
        try:
            dataset.fingerprint()
            for row in list(dataset)[:2]:
                dataset.read_row(row.row)
        finally:
            dataset.close()


def read_picture(path: Path) -> None:
    data = path.read_bytes()
    size = EncodedImage(data).size
    assert EncodedImage(data).digest()[0] == size == EncodedImage(data).decode().size


def read_weights(path: Path) -> None:
    read_markers(open_weights(path, "transformer"), "")


def read_zip(path: Path) -> None:
    """Pack a zip; nothing but the parquet may appear, and that only of a good one."""
    out = path.with_name("packed.parquet")
    before = set(path.parent.iterdir())
    try:
        drain(pack(path, out))
        read_parquet(out, PACKED_NAMES)
    finally:
        out.unlink(missing_ok=True)
        assert set(path.parent.iterdir()) == before


READERS: dict[str, Callable[[Path], object]] = {
    "parquet": read_parquet,
    "picture": read_picture,
    "safetensors": read_weights,
    "gguf": read_weights,
    "request": lambda path: load_request(path),
    "zip": read_zip,
    "arrow": read_parquet,
}


def check(kind: str, path: Path) -> str:
    """Read a file and return "read" or "refused". Raises AssertionError for anything else."""
    began = time.monotonic()
    result, said = "read", ""
    with peak_memory() as peak:
        try:
            READERS[kind](path)
        except BadInput as error:
            said, code = outcome(error)
            assert code == 2 and "Traceback" not in said
            result = "refused"
    assert time.monotonic() - began < MAX_SECONDS, f"{time.monotonic() - began:.1f} seconds: {said}"
    assert peak[0] < MAX_BYTES, f"{peak[0] >> 20} MB: {said}"
    return result


def run(folder: Path, seed: int, rounds: Iterable[object], counts: Counter[str]) -> list[str]:
    """Check one mutated file of each kind a round. Returns the failures; their files stay in `folder`."""
    failures = []
    good = seeds(folder)
    pick = random.Random(seed)
    for _ in rounds:
        for kind, files in good.items():
            data = mutated(pick.choice(files), pick)
            path = folder / f"case.{kind}"
            path.write_bytes(data)
            try:
                counts[f"{kind} {check(kind, path)}"] += 1
            except Exception as error:
                counts[f"{kind} failed"] += 1
                path.rename(folder / f"failed-{len(failures)}.{kind}")
                failures.append(f"failed-{len(failures)}.{kind}: {type(error).__name__}: {error}")
    return failures


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    faulthandler.enable()
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"seed {options.seed}; the last files are in {folder}", flush=True)
    end = time.monotonic() + options.minutes * 60
    failures = run(folder, options.seed, iter(lambda: time.monotonic() < end, False), counts)
    print(*failures, sep="\n")
    for name, count in sorted(counts.items()):
        print(f"{name:24}{count:8}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
