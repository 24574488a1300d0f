"""Host memory that is copied to a GPU: page-locked while the system allows it, pageable beyond, allocated once.

CUDA's runtime and streams are stand-ins that note what is asked of them; the tensors are on the CPU.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.device import release_host_cache
from trainer.memory import pinned
from trainer.memory.host_inputs import HostInputs, _Transfers
from trainer.memory.pinned import STEP, BufferPool, HostBuffer, PageLocks, PinnedTensors, page_locked_copy
from trainer.training import batch as batches

from .steps import random_batch

MIB = 2**20
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Runtime:
    """CUDA's runtime, which locks `limit` bytes and no more."""

    def __init__(self, limit: int) -> None:
        self.limit, self.locked = limit, {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if sum(self.locked.values()) + size > self.limit:
            return 2
        self.locked[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> None:
        del self.locked[address]


@pytest.fixture
def system(monkeypatch):
    """Make a system that locks `granted` bytes and is expected to lock `expected`."""

    def make(granted: int, expected: int = 2**40) -> Runtime:
        runtime = Runtime(granted)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(pinned, "_take_error", lambda: None)
        monkeypatch.setattr(pinned, "PAGE_LOCKS", PageLocks(expected))
        return runtime

    return make


def test_refused_memory_is_pageable_and_said_once(system):
    runtime = system(granted=5 * MIB)
    tensors = [torch.arange(MIB // 2, dtype=torch.float32) + number for number in range(4)]
    kept = [PinnedTensors([tensor]).lock(CUDA) for tensor in tensors]
    assert list(runtime.locked.values()) == [2 * MIB] * 2
    for number, tensor in enumerate(tensors):
        assert torch.equal(tensor, torch.arange(MIB // 2, dtype=torch.float32) + number)
    message = pinned.PAGE_LOCKS.take_notice()
    assert message is not None
    assert "page-locked" in message
    assert pinned.PAGE_LOCKS.take_notice() is None
    del kept
    gc.collect()
    assert not runtime.locked
    assert pinned.PAGE_LOCKS.locked == 0


def test_nothing_is_said_while_there_is_enough(system):
    system(granted=2**30)
    HostBuffer(MIB).lock(CUDA)
    assert pinned.PAGE_LOCKS.take_notice() is None


def test_what_is_copied_more_often_gets_the_memory(system):
    """Blocks and modulation leave what batches and inputs take, although they come first."""
    runtime = system(granted=2**40, expected=8 * MIB)
    blocks = [HostBuffer(2 * MIB).lock(CUDA, leave=3 * MIB) for _ in range(4)]
    assert len(runtime.locked) == 2
    inputs = HostBuffer(3 * MIB).lock(CUDA)
    assert len(runtime.locked) == 3
    del blocks, inputs


def test_buffers_are_not_rounded_to_powers_of_two(system):
    runtime = system(granted=2**40)
    buffer = HostBuffer(5 * MIB + 1).lock(CUDA)
    assert list(runtime.locked.values()) == [5 * MIB + pinned.PAGE]
    assert len(buffer.flat) == 5 * MIB + 1


def test_a_refused_batch_stays_pageable(system, monkeypatch, qwen):
    system(granted=0)

    def refuse(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    tensor = torch.randn(3)
    assert page_locked_copy(tensor) is tensor
    batch = random_batch(qwen, 1)
    assert torch.equal(batches._pinned(batch).noise, batch.noise)
    assert pinned.PAGE_LOCKS.take_notice()


def test_buffers_are_used_again_for_other_lengths(system):
    runtime = system(granted=2**40)
    pool = BufferPool(CUDA)
    for length in (1000, 1100, 900, 5000, 800):
        tensors = [pool.take([1, length, 300], torch.bfloat16, "text") for _ in range(3)]
        for number, tensor in enumerate(tensors):
            tensor.fill_(number)
        assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2]]
        del tensor, tensors
    assert len(runtime.locked) == 3
    assert max(runtime.locked.values()) == -(-5000 * 600 // STEP) * STEP


def test_page_locked_memory_of_batches_is_given_back_after_a_run(monkeypatch):
    """Batches lie in torch's own buffers, which it keeps for later ones."""
    released = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: released.append(1), raising=False)
    release_host_cache()
    assert released
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    release_host_cache()  # an older torch
    assert len(released) == 1


class Stream:
    """Notes what it waits for."""

    def __init__(self) -> None:
        self.waits: list[object] = []

    def wait_stream(self, other: Stream) -> None:
        self.waits.append(other)

    def wait_event(self, event: object) -> None:
        self.waits.append(event)

    def record_event(self) -> object:
        return object()


@pytest.fixture
def streams(monkeypatch):
    """The main stream, and offloaded inputs that copy on another."""
    main = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: pytest.fail("recorded on a stream"), raising=False)
    transfers = _Transfers(CPU)
    transfers._copies = Stream()
    inputs = HostInputs()
    inputs._transfers = transfers
    return main, inputs


class Square(nn.Module):
    """A block that saves its input."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * tokens


def test_an_input_that_is_copied_out_is_kept_until_the_next_block_has_waited(streams):
    main, inputs = streams
    block = Square()
    tokens = torch.randn(1, 4, 8, requires_grad=True)
    first = tokens + 0
    source = weakref.ref(first.untyped_storage())
    second = inputs.run(lambda block, x: block(x), block, first)
    del first
    copied = inputs._transfers.copied
    assert source() is not None
    assert not main.waits
    third = inputs.run(lambda block, x: block(x), block, second)
    assert source() is None
    assert main.waits == [copied]
    third.sum().backward()
    assert torch.allclose(tokens.grad, 4 * tokens**3)


@pytest.mark.slow
def test_an_interpreter_that_ends_with_locked_pages_says_nothing():
    """Not even where CUDA fails by then."""
    script = """
import torch
from trainer.device import release_host_cache
from trainer.memory import pinned
class Runtime:
    def cudaHostRegister(self, *args): return 0
    def cudaHostUnregister(self, address): raise RuntimeError("driver shutting down")
torch.cuda.cudart = Runtime
def fail(): raise RuntimeError("driver shutting down")
torch.cuda.synchronize = fail
kept = pinned.HostBuffer(100).lock(torch.device("cuda"))
other = pinned.HostBuffer(100).lock(torch.device("cuda"))
del other
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
