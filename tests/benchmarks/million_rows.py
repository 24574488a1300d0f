"""Opens and reports a parquet of 1 000 000 rows of image paths; prints seconds and memory above the imports.

Run from the repository's root: python tests/benchmarks/million_rows.py
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainer.config.columns import Columns
from trainer.data.dataset import open_dataset
from trainer.events import drain

ROWS = 1_000_000
IMAGES = 1000


def make(folder: Path) -> Path:
    """A parquet whose rows name IMAGES small files, half of them by Windows' separators."""
    for kind in ("input", "output"):
        (folder / kind).mkdir()
        for number in range(IMAGES):
            colour = (number % 256, number // 4 % 256, 128 if kind == "input" else 0)
            Image.new("RGB", (64, 64), colour).save(folder / kind / f"image_number_{number:08d}.png")
    path = folder / "edits.parquet"
    writer = None
    for start in range(0, ROWS, 100_000):
        rows = range(start, start + 100_000)
        table = pa.table(
            {
                "prompt": [f"make it look like picture number {row}, in the style of {row % 7}" for row in rows],
                "before": [f"input/image_number_{row % IMAGES:08d}.png" for row in rows],
                "after": [f"output\\image_number_{row % IMAGES:08d}.png" for row in rows],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()
    return path


def resident_bytes() -> int:
    """Memory of this process; 0 where it cannot be told."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


class Peak:
    """Highest resident memory while in use, looked at 200 times a second."""

    def __enter__(self) -> Peak:
        self.bytes = self.before = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())


def main() -> None:
    if len(sys.argv) == 1:
        with tempfile.TemporaryDirectory() as folder:
            import subprocess

            made = subprocess.run([sys.executable, __file__, "make", folder], check=True)
            assert made.returncode == 0
            measure(Path(folder) / "edits.parquet")
    else:
        make(Path(sys.argv[2]))


def measure(path: Path) -> None:
    """Open, report and fingerprint; print what each took."""
    with Peak() as peak:
        start = time.perf_counter()
        dataset = drain(open_dataset(path, Columns("prompt", ("before",), "after")))
        print(dataset.report)
        seconds = time.perf_counter() - start
    print(f"opened and reported: {seconds:.1f} s, {(peak.bytes - peak.before) / 2**20:.0f} MB above the imports")
    start = time.perf_counter()
    dataset.fingerprint()
    print(f"fingerprint: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    rows = sum(1 for _ in dataset)
    print(f"iterated over {rows} rows: {time.perf_counter() - start:.1f} s")
    dataset.close()


if __name__ == "__main__":
    main()
