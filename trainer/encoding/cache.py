"""Content-addressed store of latents and text embeddings.

A key is a hash of everything that the tensors depend on (image bytes, size, caption, policy, weights, dtype), so a
changed image, caption or policy has another key. Entries are small safetensors files, written atomically; several runs
and processes may share a store.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from pathlib import Path

import torch

from ..tensors import load_tensors, write_tensors

Tensors = dict[str, torch.Tensor]
"""Tensors of one entry by name, any shape and dtype."""


def cache_key(*values: object) -> str:
    """Hash a sequence of values by their `str`; no two different sequences share a key."""
    digest = hashlib.sha256()
    for value in values:
        text = str(value).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


class TensorCache:
    """Entries on disk, the most recently used of them also in memory. Thread-safe."""

    def __init__(self, folder: Path, memory_bytes: int = 512 * 2**20) -> None:
        """`memory_bytes` bounds the entries in memory. The default, a judgement, holds 512 images of 1024 x 1024 pixels
        (16 x 128 x 128 float32 latents, 1 MiB each)."""
        self.folder = folder
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, Tensors] = OrderedDict()
        self._memory_size = 0
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._memory or _complete(self._path(key))

    def get(self, key: str) -> Tensors | None:
        """Return an entry's tensors, any shape and dtype, on the CPU; None when it is missing or damaged."""
        from safetensors import SafetensorError

        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        try:
            tensors = load_tensors(self._path(key))
        except (OSError, SafetensorError):
            return None
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: Tensors) -> None:
        """Store an entry of tensors of any shape and dtype. Raises RunFailed when the disk refuses."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        write_tensors(self._path(key), tensors, durable=False)
        self._remember(key, tensors)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _remember(self, key: str, tensors: Tensors) -> None:
        with self._lock:
            if key in self._memory:
                return
            self._memory[key] = tensors
            self._memory_size += _size(tensors)
            while self._memory_size > self.memory_bytes:
                _, dropped = self._memory.popitem(last=False)
                self._memory_size -= _size(dropped)


def _complete(path: Path) -> bool:
    """Tell whether the file exists in its full length (a power cut may leave it shorter)."""
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
            return file.seek(0, 2) == 8 + header_length + end
    except (OSError, ValueError):
        return False


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
