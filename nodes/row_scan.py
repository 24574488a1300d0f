"""Search for rows that look wrong, in the background, while a person looks through a dataset."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from ..trainer.config.columns import Columns
from ..trainer.errors import BadInput, RunFailed

MAX_FOUND = 20_000
"""Rows that are listed; a judgement: far more than a person looks at, and about a megabyte for the page."""
MAX_SCANS = 2
"""Searches that are kept; a judgement: a person looks at one dataset at a time."""
IDLE_SECONDS = 10
"""Time without a question after which a search pauses, as the person has closed the page; a judgement."""


class RowScan:
    """One search. It goes on while it is asked about, in a thread of its own; the file is open no longer than that."""

    def __init__(self, path: Path, columns: Columns, root: Path) -> None:
        self.fault = ""
        self.done = False
        self._source = path, columns, root
        self._checked = 0
        self._found: list[list[Any]] = []
        self._asked = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def found(self, start: int) -> dict[str, Any]:
        """Return the number of checked rows, and what was found from index `start` on: `[row, kinds, values]` each."""
        with self._lock:
            self._asked = time.monotonic()
            if self._thread is None and not self.done:
                self._thread = threading.Thread(target=self._run, name="scan-rows", daemon=True)
                self._thread.start()
        return {"checked": self._checked, "done": self.done, "fault": self.fault, "found": self._found[start:]}

    def drop(self) -> None:
        """End the search."""
        self.done = True

    def _run(self) -> None:
        from ..trainer.data.row_warnings import scan_rows

        try:
            for warnings in scan_rows(*self._source, self._checked):
                if warnings.kinds:
                    self._found.append([warnings.row, list(warnings.kinds), warnings.values])
                self._checked = warnings.row + 1
                if self.done or len(self._found) >= MAX_FOUND:
                    break
                if self._is_idle():
                    return
        except (BadInput, RunFailed) as error:
            self.fault = str(error)
        self.done = True

    def _is_idle(self) -> bool:
        """Tell whether nobody asks any more; the thread then ends, and the next question begins another."""
        with self._lock:
            if time.monotonic() - self._asked <= IDLE_SECONDS:
                return False
            self._thread = None
            return True


class RowScans:
    """The last searches, by what they look at."""

    def __init__(self) -> None:
        self._scans: OrderedDict[Hashable, RowScan] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, path: Path, columns: Columns, root: Path) -> RowScan:
        """Return the search of a key, or begin one."""
        with self._lock:
            scan = self._scans.pop(key, None) or RowScan(path, columns, root)
            self._scans[key] = scan
            while len(self._scans) > MAX_SCANS:
                self._scans.popitem(last=False)[1].drop()
            return scan


SCANS = RowScans()
