"""Reads the headers of safetensors and GGUF files, and their tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadInput
from ..paths import path_kind

if TYPE_CHECKING:
    import torch


MAX_HEADER = 16 * 2**20
"""Bytes of a header; longer ones are refused as damaged or malicious, as JSON takes up to thirty times its length in
memory. The published models' are below a fifth of it."""


MAX_TENSORS = 100_000
"""Tensors of a file. The published models have a few thousand."""


MAX_NAME = 300
"""Characters of a tensor's name. The published models' names have fewer than 100."""


GGUF_MAGIC = b"GGUF"


_NOT_WEIGHTS = {
    b"PK\x03\x04": "a PyTorch pickle (.pt, .ckpt), which can run any code when it is opened",
    b"\x80": "a Python pickle, which can run any code when it is opened",
    b"\xef\xbb\xbf<": "an HTML or XML page, as a download that needed a login or a licence leaves behind",
    b"<": "an HTML or XML page, as a download that needed a login or a licence leaves behind",
    b'{"': "a JSON text, as an index of weights or a refused download is",
    b"version https://git-lfs": "a Git LFS pointer; the file itself was not downloaded",
}


_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
}
"""Bits of one element by safetensors dtype."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name (`BF16`, `F8_E4M3`, ...), or `GGUF:` followed by ggml's (`GGUF:Q4_K`)."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Header of a safetensors or GGUF file."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @contextmanager
    def opened(self) -> Iterator[Reader]:
        """Context with a reader of the tensors. Raises BadInput if they cannot be read."""
        from safetensors import SafetensorError

        try:
            if self.is_gguf:
                yield _GgufReader(self.path)
            else:
                from safetensors import safe_open

                with safe_open(self.path, framework="pt") as file:
                    yield _SafetensorsReader(file)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{self.path} cannot be read: {error}") from error

    @property
    def is_gguf(self) -> bool:
        """True for a GGUF file."""
        return any(tensor.dtype.startswith("GGUF:") for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class ShardedWeights(WeightFile):
    """Several files that together hold one module; `path` is their folder."""

    shards: tuple[WeightFile, ...]

    @contextmanager
    def opened(self) -> Iterator[Reader]:
        with ExitStack() as fused:
            readers = {}
            for shard in self.shards:
                readers |= dict.fromkeys(shard.tensors, fused.enter_context(shard.opened()))
            yield _ShardsReader(readers)


class Reader(Protocol):
    """Reads the tensors of an open file."""

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor of any shape to the CPU in its stored dtype; it may share the file's memory."""
        ...


class _SafetensorsReader:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _ShardsReader:
    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = readers

    def read(self, name: str) -> torch.Tensor:
        return self._readers[name].read(name)


class _GgufReader:
    def __init__(self, path: Path) -> None:
        from .gguf_reader import BoundedGgufReader

        self._tensors = {tensor.name: tensor.data for tensor in BoundedGgufReader(path).tensors}

    def read(self, name: str) -> torch.Tensor:
        """Read a plain tensor in its shape and dtype, or a quantized one as uint8 [rows, bytes per row]."""
        import torch

        return torch.from_numpy(self._tensors[name].copy())


def open_weights(path: Path, what: str) -> WeightFile:
    """Read a file's header; `what` names the expected content in messages, such as "transformer".

    Raises BadInput for a file that is not safetensors or GGUF, or is truncated, and says what it is.
    """
    try:
        kind = path_kind(path)
        if kind == "folder":
            raise BadInput(f"The {what} {path} is a folder; name the file.")
        if kind == "other":
            raise BadInput(f"The {what} {path} is not a file.")
        if kind == "missing":
            raise BadInput(f"The {what} {path} does not exist.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            header = file.read(length) if 1 < length <= min(MAX_HEADER, size - 8) else b""
    except OSError as error:
        raise BadInput(f"Cannot read the {what} {path}: {error.strerror or error}.") from None
    if size == 0:
        raise BadInput(f"The {what} {path} is empty (0 bytes); download it again.")
    if start.startswith(GGUF_MAGIC):
        return _open_gguf(path, what)
    for magic, kind in _NOT_WEIGHTS.items():
        # The first eight bytes of a safetensors file are a number, which may look like any of these.
        if start.lstrip().startswith(magic) and not header.startswith(b"{"):
            raise BadInput(f"The {what} {path} is not a safetensors file: it is {kind}.")
    if not header and 1 < length <= MAX_HEADER and start[8:9] == b"{":
        raise BadInput(f"The {what} {path} is cut short: its header alone is longer. Download it again.")
    if length > MAX_HEADER and start[8:9] == b"{":
        raise BadInput(f"The {what} {path} is damaged: its header of {length:,} bytes is longer than any model's.")
    if not header.startswith(b"{"):
        raise BadInput(f"The {what} {path} is not a safetensors file: it has no safetensors header.")
    return _parse_header(path, what, header, size)


def open_shards(folder: Path, stem: str, what: str) -> WeightFile:
    """Read the headers of the safetensors file or shards named `stem` in a folder of diffusers' layout. Raises BadInput
    as `open_weights` does."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return open_weights(folder / f"{stem}.safetensors", what)
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ValueError
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({Path(name).name for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"The {what} {index} is damaged: it does not say which files hold the weights.") from None
    shards = tuple(open_weights(folder / name, what) for name in names)
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    return ShardedWeights(folder, tensors, {}, shards)


def _parse_header(path: Path, what: str, header: bytes, size: int) -> WeightFile:
    try:
        tensors, metadata, end = _read_header(header)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, _Damage) else "it is no JSON"
        raise BadInput(f"The {what} {path} is not a safetensors file: its header is damaged ({why}).") from None
    whole = 8 + len(header) + end
    if size < whole:
        raise BadInput(f"The {what} {path} is cut short: it has {size:,} of {whole:,} bytes. Download it again.")
    if size > whole:
        raise BadInput(f"The {what} {path} is damaged: it has {size:,} bytes, but its header describes {whole:,}.")
    return WeightFile(path, tensors, metadata)


class _Damage(ValueError):
    """A fault of a header."""


def _read_header(header: bytes) -> tuple[dict[str, StoredTensor], dict[str, str], int]:
    """Tensors, metadata and the end of the last tensor's data. Raises ValueError or RecursionError for bytes that are
    not a header."""
    if header.count(b'"data_offsets"') > MAX_TENSORS:
        raise _Damage(f"it has more than {MAX_TENSORS:,} tensors")
    entries = json.loads(header.decode("utf-8"))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damage("its metadata is not text")
    if len(entries) > MAX_TENSORS:
        raise _Damage(f"it has more than {MAX_TENSORS:,} tensors")
    tensors, spans = {}, []
    for name, entry in entries.items():
        if len(name) > MAX_NAME or not name.isprintable():
            raise _Damage(f"it has the name {name[:40]!a}")
        tensors[name], span = _read_entry(name, entry)
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _Damage("its tensors overlap or leave gaps")
        end = last
    return tensors, metadata, end


def _read_entry(name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """A tensor, with the first byte of its data and the one after the last."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise _Damage(f"{name} has no dtype")
    shape, offsets, dtype = _counts(entry.get("shape")), _counts(entry.get("data_offsets")), entry["dtype"]
    if shape is None or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Damage(f"{name} has no valid shape or offsets")
    bits = _BITS.get(dtype)
    if bits is not None and prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
        raise _Damage(f"{name} has another size than its shape and dtype require")
    return StoredTensor(shape, dtype), (offsets[0], offsets[1])


def _counts(value: object) -> tuple[int, ...] | None:
    """A decoded JSON list of non-negative integers as a tuple; None for anything else."""
    if isinstance(value, list) and all(type(number) is int and number >= 0 for number in value):
        return tuple(value)
    return None


def _open_gguf(path: Path, what: str) -> WeightFile:
    try:
        from .gguf_reader import BoundedGgufReader
    except ImportError:
        raise BadInput(
            f"The {what} {path} is a GGUF file, and the package gguf, which reads it, is not installed: run "
            "`python -m pip install gguf`, or use a safetensors file."
        ) from None
    try:
        reader = BoundedGgufReader(path)
    except Exception as error:  # On damaged files the reader raises many kinds of errors.
        raise BadInput(f"The {what} {path} is damaged or cut short: {error}") from None
    tensors = {}
    for tensor in reader.tensors:
        # ggml lists dimensions in reverse order.
        shape = tuple(int(length) for length in reversed(tensor.shape))
        tensors[tensor.name] = StoredTensor(
            _original_shape(reader, tensor.name, shape), f"GGUF:{tensor.tensor_type.name}"
        )
    return WeightFile(path, tensors, {})


def _original_shape(reader: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape before a converter flattened the tensor; ComfyUI-GGUF's converter stores it as a field."""
    field = reader.get_field(f"comfy.gguf.orig_shape.{name}")
    return shape if field is None else tuple(int(length) for index in field.data for length in field.parts[index])
