"""A file as large as memory: it is read tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from trainer.models.family import family_class
from trainer.single_file.key_mapping import to_stored

from ..single_files import FLUX
from .processes import run_script

pytestmark = pytest.mark.slow

FULL, NARROW = 3072, 2048
"""Widths of a transformer. What a process takes besides is little beside the blocks of either, and hardly shows beside
the single tensors of the full one."""


reads_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
NAMES = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}


def largest(width: int) -> int:
    """Numbers of the largest weight: a single block's joined q, k, v and MLP."""
    return 7 * width * width


def write_random(path: Path, dtype: torch.dtype, width: int) -> int:
    """A file of the Flux layout with random weights, so many blocks that one tensor is little beside them; written
    piece by piece. Its size in bytes."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=1, num_single_layers=4, num_attention_heads=width // 128, guidance_embeds=True
        )
    stored = dict(to_stored(family_class(FLUX).layout(None, transformer), transformer.state_dict()))
    header, end = {}, 0
    for name, tensor in stored.items():
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    piece = torch.randn(1 << 20).to(dtype).view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, len(piece)):
            file.write(piece[: end - begin])
    return end


def taken_by_loading(file: Path, *arguments: str) -> dict[str, int]:
    """What loading_memory.py prints of a file."""
    printed = run_script("tests.trainer.loading_memory", file, *arguments)
    file.unlink()
    return json.loads(printed.splitlines()[-1])


@reads_proc
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path, dtype: torch.dtype):
    file = tmp_path / "kontext.safetensors"
    size = write_random(file, dtype, NARROW)
    assert size > 14 * largest(NARROW) * dtype.itemsize
    taken = taken_by_loading(file, "bf16")
    assert taken["held"] == pytest.approx(size, rel=0.01)
    assert taken["peak"] - taken["before"] < 1.2 * taken["held"], taken


@reads_proc
def test_quantizing_takes_little_more_memory_than_the_codes(tmp_path: Path):
    file = tmp_path / "kontext.safetensors"
    size = write_random(file, torch.bfloat16, NARROW)
    taken = taken_by_loading(file, "bf16", "int8")
    assert size / 2 < taken["held"] < 0.56 * size, "all but what lies outside of the blocks"
    assert taken["peak"] - taken["before"] < 1.05 * (taken["held"] + largest(NARROW) * torch.bfloat16.itemsize), taken


@reads_proc
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_resident_weights_pass_through_the_host_one_by_one(tmp_path: Path, precision: str):
    """`meta` stands for the card. By hand on a larger file:
    `python -m tests.trainer.loading_memory FILE bf16 int8 placed`."""
    file = tmp_path / "kontext.safetensors"
    write_random(file, torch.bfloat16, FULL)
    taken = taken_by_loading(file, "bf16", precision, "placed")
    assert 0.4 * taken["total"] < taken["held"] < 0.8 * taken["total"], "modulation and every second block"
    block = largest(FULL) * (2 if precision == "bf16" else 1)
    # A block on its way to its buffer, and a tensor: as stored and, while it is quantized, twice in float32.
    allowed = 1.5 * block + largest(FULL) * (2 if precision == "bf16" else 8)
    assert taken["peak"] - taken["before"] < taken["held"] + allowed, taken
