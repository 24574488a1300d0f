"""Reading and writing of safetensors files, and copying of named tensors into parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import BadInput
from .files import atomic_write, checksum


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, durable: bool = True
) -> None:
    """Write or replace a safetensors file atomically, with tensors of any shape and dtype.

    Equal content gives equal bytes. Raises RunFailed.
    """
    with atomic_write(path, durable) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with tensors of any shape and dtype; its bytes depend on the content alone.

    Raises OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {}))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if metadata:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the header's metadata in place: safetensors writes it in a random order."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def rounded_values(parameters: Mapping[str, torch.nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Context in which parameters of any shape have values that `dtype` can hold, in their own dtype; restores them on
    exit, bit for bit."""
    original = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(parameter.to(dtype))
    try:
        yield
    finally:
        copy_values(parameters, original)


def copy_values(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Copy named tensors, of any shape and dtype, into the parameters. Raises KeyError for a missing name."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a safetensors file to the CPU, of any shape and dtype. Raises OSError and SafetensorError."""
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Load all tensors of a safetensors file to the CPU, of any shape and dtype, and its metadata.

    They are copied, as the library's tensors map the file, which Windows then keeps locked. Raises OSError and
    SafetensorError.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensors_checksum(tensors: Mapping[str, torch.Tensor], *more: str) -> str:
    """Return the checksum of names, dtypes, shapes and bytes of CPU tensors, of any shape and dtype, and of texts."""
    parts: list[bytes | memoryview] = [text.encode() for text in more]
    for name, tensor in sorted(tensors.items()):
        parts.append(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        parts.append(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return checksum(*parts)


def read_weights(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Load all tensors of a safetensors file, as `load_tensors` does: any shape and dtype.

    `what` names the file in messages. Raises BadInput when it cannot be read.
    """
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise BadInput(f"The {what} {path} does not exist.") from None
    except OSError as error:
        raise BadInput(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise BadInput(f"The {what} {path} is not a readable safetensors file: {error}.") from None
