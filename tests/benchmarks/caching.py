"""What caching costs beside its slower half. Run from the repository's root: python tests/benchmarks/caching.py

Makes pairs of 512 x 512 pictures, then takes, block by block so that a busy machine is as busy for each of them:
decode alone (two threads: fetch, hash, decode, resize), encode alone (tensors ready; first in turn, as a loop over the
codec does, then as the pipeline does), and `Encoder.examples` with an empty cache. Prints the seconds of all blocks,
the CPU's seconds, and the ratio of the pipeline to the slower half, with either encoding; the aim is at most 1.1.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from trainer.config.columns import Columns
from trainer.config.settings import RunSettings
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.images import decode_image
from trainer.data.resize import Size
from trainer.device import default_device
from trainer.encoding.cache import TensorCache
from trainer.encoding.encoder import Encoder
from trainer.encoding.latents import LatentEncoder, PreparedImage
from trainer.events import RunControl, drain
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import open_model
from trainer.tensors import DTYPES

SIDE = 512
PICTURES = 32
COLUMNS = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}


class Spent(NamedTuple):
    seconds: float
    cpu_seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __str__(self) -> str:
        return f"{self.seconds:8.2f} s, {self.cpu_seconds:8.2f} CPU s"


def spent(work: Callable[[], object]) -> Spent:
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - begun, time.process_time() - cpu)


def pictures(kind: str) -> list[bytes]:
    """Files about as hard to decode as photographs: soft shapes and a little noise."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        soft = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3)
        noisy = np.asarray(soft, dtype=np.int16) + random.integers(-5, 6, (SIDE, SIDE, 3))
        buffer = io.BytesIO()
        options = {"quality": 90} if kind == "jpeg" else {}
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def write_block(folder: Path, files: list[bytes], first: int, pairs: int, as_files: bool) -> EditDataset:
    """A dataset of pairs in which no two images are the same file: each has its number behind its end."""

    def image(number: int) -> bytes:
        return files[number % len(files)] + number.to_bytes(8, "big")

    images = {"control": [image(2 * n) for n in range(first, first + pairs)]}
    images["target"] = [image(2 * n + 1) for n in range(first, first + pairs)]
    if as_files:
        for name, column in images.items():
            for number, data in enumerate(column):
                (folder / f"{name}-{first + number}").write_bytes(data)
            images[name] = [f"{name}-{first + number}" for number in range(pairs)]
    path = folder / f"pairs-{first}.parquet"
    pq.write_table(pa.table({"caption": [f"pair {first + n}" for n in range(pairs)], **images}), path)
    return drain(open_dataset(path, Columns.from_fields(COLUMNS)))


def decode_alone(dataset: EditDataset, encoder: Encoder, threads: int) -> Iterator[torch.Tensor]:
    """Every image fetched, hashed, decoded and resized."""

    def prepare(reference) -> torch.Tensor:
        data = dataset.fetch(reference)
        hashlib.sha256(data).hexdigest()
        return encoder.family.prepare_target(decode_image(data), Size(SIDE, SIDE))

    references = [reference for row in dataset for reference in (*row.controls, row.target)]
    with ThreadPoolExecutor(threads) as executor:
        yield from executor.map(prepare, references)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--block", type=int, default=50, help="pairs in a block")
    parser.add_argument("--kind", choices=("png", "jpeg"), default="png")
    parser.add_argument("--files", action="store_true", help="images in files, not in the parquet")
    parser.add_argument("--base-model", default="tiny/flux-kontext")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, device = open_model(options.base_model), default_device()
    settings = RunSettings(resolution=SIDE, control_resolution="target")
    precision = "fp32" if device.type == "cpu" else "bf16"
    components = ModelComponents(model, device, Plan(precision=precision, dtype=DTYPES[precision], offload="none"))
    files = pictures(options.kind)
    totals = [Spent(0, 0)] * 4
    first_progress = 0.0
    for first in range(0, options.pairs, options.block):
        with tempfile.TemporaryDirectory() as folder:
            pairs = min(options.block, options.pairs - first)
            dataset = write_block(Path(folder), files, first, pairs, options.files)
            encoder = Encoder(components, TensorCache(Path(folder) / "cache"), settings)
            ready = [next(decode_alone(dataset, encoder, 1))] * (2 * pairs)
            encode_in_turn(encoder, ready[:2])

            def pipeline(encoder: Encoder = encoder, dataset: EditDataset = dataset) -> None:
                nonlocal first_progress
                begun = time.perf_counter()
                for event in encoder.examples(dataset, RunControl()):
                    if event.done == 1:
                        first_progress = max(first_progress, time.perf_counter() - begun)

            rounds = [
                spent(lambda: [None for _ in decode_alone(dataset, encoder, options.threads)]),  # noqa: B023
                spent(lambda: encode_in_turn(encoder, ready)),  # noqa: B023
                spent(lambda: encode_as_pipeline(encoder, ready)),  # noqa: B023
                spent(pipeline),
            ]
            dataset.close()
            totals = [total + took for total, took in zip(totals, rounds, strict=True)]
            print(f"{first + pairs:6} pairs: " + "   ".join(map(str, rounds)), flush=True)
    decode, in_turn, as_pipeline, pipeline_spent = totals
    names = ("decode alone", "encode in turn", "encode as the pipeline does", "pipeline")
    for name, total in zip(names, totals, strict=True):
        print(f"{name:27} {total}")
    for name, encode in zip(names[1:], (in_turn, as_pipeline), strict=False):
        slower = max(decode.seconds, encode.seconds)
        print(f"pipeline / the slower of decode alone and {name}: {pipeline_spent.seconds / slower:.3f}")
    print(f"first progress after {first_progress:.2f} s at most")
    if hasattr(os, "getloadavg"):
        print("load", *(f"{load:.1f}" for load in os.getloadavg()))


def encode_in_turn(encoder: Encoder, ready: list[torch.Tensor]) -> None:
    """The prepared tensors through the codec: on the CPU one by one, on an accelerator in the pipeline's batches."""
    on_cpu = encoder.components.device.type == "cpu"
    count = 1 if on_cpu else LatentEncoder(encoder.components, encoder.cache).batch_size(Size(SIDE, SIDE))
    with torch.no_grad():
        for first in range(0, len(ready), count):
            batch = torch.cat(ready[first : first + count])
            encoder.family.encode(encoder.components.codec(), batch).to("cpu")


def encode_as_pipeline(encoder: Encoder, ready: list[torch.Tensor]) -> None:
    """The prepared tensors as the pipeline encodes them, into the cache."""
    with LatentEncoder(encoder.components, encoder.cache) as batches:
        for number, pixels in enumerate(ready):
            batches.add(PreparedImage(f"{number:064x}", pixels))
        batches.finish()


if __name__ == "__main__":
    main()
