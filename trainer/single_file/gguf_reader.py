"""Reading of GGUF headers in time that is bounded by what a model's header holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

MAX_HEADER = 32 * 2**20
"""Bytes before the tensors' data, as for safetensors. Tokenizers, the largest part, take 6 MB."""


MAX_FIELDS = 100_000
"""Fields, and as many tensors; the published models have a few thousand."""


class BoundedGgufReader(GGUFReader):
    """gguf's reader, which makes several arrays for each element of an array: 40 seconds for 3 MB of bytes.

    Arrays of numbers are one part here. Arrays of strings, which tokenizers have and nothing here reads, have no parts.
    """

    def __init__(self, path: Path) -> None:
        """Read the header. Raises errors of many kinds for a file that is damaged or has too long a header."""
        with path.open("rb") as file:
            counts = np.frombuffer(file.read(24)[8:], "<u8")
        # The counts of a file in the other byte order are far above the limit, or far below.
        if counts.max() > MAX_FIELDS and counts.byteswap().max() > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS:,} fields or tensors")
        super().__init__(path)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray[Any, Any]], list[int], list[GGUFValueType]]:
        if orig_offs > MAX_HEADER:
            raise ValueError("its header is longer than any model's")
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        types = [GGUFValueType.ARRAY, GGUFValueType(kind[0])]
        offset = orig_offs + 12
        if types[1] == GGUFValueType.STRING:
            data, end = self.data.data, min(len(self.data), MAX_HEADER)
            order = "little" if (sys.byteorder == "little") == (self.byte_order == "I") else "big"
            for _ in range(int(length[0])):
                offset += 8 + int.from_bytes(data[offset : offset + 8], order)
                if offset > end:
                    raise ValueError("it ends within an array, or its header is longer than any model's")
            return offset - orig_offs, [kind, length], [], types
        values = self._get(offset, self.gguf_scalar_to_np[types[1]], int(length[0]))
        if len(values) < length[0]:
            raise ValueError("it ends within an array")
        return offset + values.nbytes - orig_offs, [kind, length, values], [2], types
