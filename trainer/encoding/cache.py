"""Content-addressed store of latents and text embeddings.

A key is a hash of everything that the tensors depend on (image bytes, size, caption, policy, weights, dtype), so a
changed image, caption or policy has another key. Entries are small safetensors files, written atomically; several runs
and processes may share a store. An entry carries a checksum of its key and tensors; one of an earlier release, known by
the names of its tensors, is read as it is and gets one.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import RunFailed
from ..tensors import load_with_metadata, tensors_checksum, write_tensors

Tensors = dict[str, torch.Tensor]
"""Tensors of one entry by name, any shape and dtype."""

VERSION = "1"
"""Format of the entries, in their metadata."""


class DamagedEntry(RunFailed):
    """A damaged entry that was dropped from the cache. `key` is its key."""

    def __init__(self, key: str, folder: Path) -> None:
        super().__init__(
            f"An entry of the cache {folder} was damaged and was removed. Start the run again; it makes the entry anew."
        )
        self.key = key


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
        self.damaged: set[str] = set()
        """Keys of the damaged entries that were dropped."""

    def __contains__(self, key: str) -> bool:
        return key in self._memory or _complete(self._path(key))

    def get(self, key: str, names: Collection[str]) -> Tensors | None:
        """Return the tensors of these names of an entry, any shape and dtype, on the CPU; None when it is missing or
        damaged.

        A damaged one is removed, and its key is added to `damaged`.
        """
        from safetensors import SafetensorError

        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        path = self._path(key)
        try:
            tensors, metadata = load_with_metadata(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            return self._drop(key)
        if not metadata and tensors.keys() == set(names):
            with suppress(RunFailed):  # a cache that cannot be written is still good to read
                self._write(key, tensors)
        elif metadata != _metadata(key, tensors):
            return self._drop(key)
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: Tensors) -> None:
        """Store an entry of tensors of any shape and dtype. Raises RunFailed when the disk refuses."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        self._write(key, tensors)
        self._remember(key, tensors)

    def lost(self, key: str) -> RunFailed:
        """Return the error for an entry that was here before and that `get` did not find."""
        if key in self.damaged:
            return DamagedEntry(key, self.folder)
        return RunFailed(
            f"The cache {self.folder} was changed during training: an entry is missing. Start the run again; it "
            "resumes from its last checkpoint and makes what is missing."
        )

    def _write(self, key: str, tensors: Tensors) -> None:
        write_tensors(self._path(key), tensors, _metadata(key, tensors), durable=False)

    def _drop(self, key: str) -> None:
        with suppress(OSError):
            self._path(key).unlink()
        self.damaged.add(key)

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


def _metadata(key: str, tensors: Tensors) -> dict[str, str]:
    return {"version": VERSION, "checksum": tensors_checksum(tensors, key)}


def _complete(path: Path) -> bool:
    """Tell whether the file exists in its full length (a power cut may leave it shorter)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
