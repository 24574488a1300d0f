"""Cells and small pictures of rows that the page shows, read when they are asked for."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..trainer.errors import BadInput
from .folders import cache_folder, file_state

if TYPE_CHECKING:
    from ..trainer.data.downloads import Downloads
    from ..trainer.data.row_blocks import RowBlocks

MAX_OPEN = 4
"""Sets of columns that stay open; a judgement: captions and pictures of two datasets."""
MAX_CACHED_BYTES = 32 << 20
"""Small pictures kept in memory, in bytes; a judgement: some thousand."""
IDLE_SECONDS = 15
"""Time after which files are closed, so that others can replace them on Windows too, and images behind URLs are asked
for again; a judgement."""
MAX_SHOWN_BYTES = 64 << 20
"""Largest image behind a URL that is shown; a judgement: above any that is trained on, and several are read at once."""
SILENCE_SECONDS, DOWNLOAD_SECONDS = 5.0, 20.0
"""Longest silence and time of a download; a judgement: a person waits for it."""


class RowReader:
    """Reads rows of the last few datasets. Thread-safe; one read at a time, as all share the disk."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, tuple[str, ...]], RowBlocks] = OrderedDict()
        self._pictures: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._size = 0
        self._used = 0.0
        self._closer: threading.Thread | None = None
        self._downloads: Downloads | None = None
        self._lock = threading.Lock()

    def cells(self, path: Path, state: str, columns: Sequence[str], row: int) -> list[str | bytes | None]:
        """Cells of a row of a dataset in this state. Raises BadInput."""
        with self._lock:
            blocks = self._blocks(path, state, tuple(columns))
            self._keep_open()
            if not 0 <= row < blocks.rows:
                raise BadInput(f"{path.name} has no row {row}.")
            block = blocks.block(row)
            try:
                return [cells[row - block.first] for cells in block.columns]
            except UnicodeDecodeError:
                raise BadInput(f"Row {row} is not valid UTF-8 text.") from None

    def picture(
        self, path: Path, state: str, columns: Sequence[str], row: int, column: str, root: Path, pixels: int
    ) -> bytes | str:
        """JPEG of a picture, at most `pixels` on a side, or the URL that it is behind, for `download`.

        `columns` are read together, as rows are looked at.

        Raises BadInput for one that cannot be shown.
        """
        from ..trainer.data.image_refs import image_ref, read_bytes

        if column not in columns:
            raise BadInput(f'"{column}" is not among the columns that are shown.')
        reference = image_ref(self.cells(path, state, columns, row)[list(columns).index(column)])
        if reference.kind == "url":
            return str(reference.value)
        written = ""
        with suppress(OSError):  # read_bytes says what is wrong with the file.
            written = file_state(root / reference.value) if isinstance(reference.value, str) else ""
        if (known := self._known(key := (state, column, row, written, pixels))) is not None:
            return known
        data = _shrink(read_bytes(reference, root, self._url_downloads()), pixels)
        self._keep(key, data)
        return data

    def download(self, url: str, pixels: int) -> bytes:
        """JPEG of the image behind a URL, at most `pixels` on a side. The cache on disk keeps the image.

        Raises BadInput for one that cannot be shown, and RunFailed when it cannot be kept.
        """
        return _shrink(self._url_downloads().fetch(url, MAX_SHOWN_BYTES), pixels)

    def _url_downloads(self) -> Downloads:
        """Downloads of the images that a person looks at now, of which none is asked for twice."""
        from ..trainer.data.downloads import Downloads

        with self._lock:
            if self._downloads is None:
                folder = cache_folder() / "downloads"
                self._downloads = Downloads(folder, timeout=SILENCE_SECONDS, deadline=DOWNLOAD_SECONDS)
            return self._downloads

    def _blocks(self, path: Path, state: str, columns: tuple[str, ...]) -> RowBlocks:
        from ..trainer.data.parquet import column_faults
        from ..trainer.data.row_blocks import RowBlocks

        key = (state, columns)
        blocks = self._open.pop(key, None)
        if blocks is None:
            faults = column_faults({f"control_image_column_{index}": name for index, name in enumerate(columns)}, path)
            if faults:
                raise BadInput(f"{path.name}: {faults[0]}.")
            blocks = RowBlocks(path, columns)
        self._open[key] = blocks
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return blocks

    def _keep_open(self) -> None:
        """Note that files were read, and have them closed when that is long ago. Call it with the lock."""
        self._used = time.monotonic()
        if self._closer is None:
            self._closer = threading.Thread(target=self._close_when_idle, name="close-rows", daemon=True)
            self._closer.start()

    def _close_when_idle(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS)
            with self._lock:
                if time.monotonic() - self._used >= IDLE_SECONDS:
                    for blocks in self._open.values():
                        blocks.close()
                    self._open.clear()
                    self._downloads = None
                    self._closer = None
                    return

    def _known(self, key: tuple[Any, ...]) -> bytes | None:
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def _keep(self, key: tuple[Any, ...], data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._pictures.pop(key, b""))
            self._pictures[key] = data
            while self._size > MAX_CACHED_BYTES:
                self._size -= len(self._pictures.popitem(last=False)[1])


def _shrink(data: bytes, pixels: int) -> bytes:
    """JPEG of an encoded image, at most `pixels` on a side. Raises BadImage."""
    from ..trainer.data.images import EncodedImage

    buffer = io.BytesIO()
    EncodedImage(data).shrink(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


READER = RowReader()
