"""The fake card itself: what it refuses, what it counts, what it notes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from .allocator import MIB, UNIT, Allocator, ExpandableAllocator, replay
from .card import CAPABILITIES, Card, fake_cuda

CUDA = torch.device("cuda", 0)


def low_precision(*shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=CUDA)


def test_devices_are_never_mixed() -> None:
    with fake_cuda(Card()), pytest.raises(RuntimeError, match="at least two devices"):
        torch.ones(3, device=CUDA) + torch.ones(3)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_fp8_products_and_bf16_depend_on_the_capability(capability: tuple[int, int]) -> None:
    with fake_cuda(Card(capability=capability)):
        assert torch.cuda.get_device_capability(CUDA) == capability
        assert torch.cuda.is_bf16_supported()
        assert torch.cuda.is_bf16_supported(including_emulation=False) == (capability >= (8, 0))
        rows = low_precision(32, 64, dtype=torch.float8_e4m3fn)
        columns = low_precision(48, 64, dtype=torch.float8_e4m3fn).t()
        one = torch.ones((), device=CUDA)

        def product() -> torch.Tensor:
            return torch._scaled_mm(rows, columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

        if capability >= (8, 9):
            assert product().shape == (32, 48)
        else:
            with pytest.raises(RuntimeError, match=r"compute capability >= 8\.9"):
                product()


@pytest.mark.parametrize(("rows", "inner", "columns"), [(16, 64, 64), (32, 60, 64), (32, 64, 60)])
def test_int8_products_have_rules(rows: int, inner: int, columns: int) -> None:
    with fake_cuda(Card()):
        assert torch._int_mm(low_precision(17, 64), low_precision(64, 64)).dtype == torch.int32
        with pytest.raises(RuntimeError, match="more than 16 rows and sides divisible by 8"):
            torch._int_mm(low_precision(rows, inner), low_precision(inner, columns))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_takes_the_kernel_that_the_card_has(capability: tuple[int, int]) -> None:
    with fake_cuda(Card(capability=capability)) as log:
        query = torch.empty(1, 2, 32, 64, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
        F.scaled_dot_product_attention(query, query, query).sum().backward()
        assert query.grad is not None
        assert log.traffic.kernels["attention"] == log.traffic.kernels["attention backward"] == 1
        F.scaled_dot_product_attention(query, query, query, attn_mask=torch.ones(1, 1, 1, 32, device=CUDA).bool())
        order = [torch.nn.attention.SDPBackend.CUDNN_ATTENTION, torch.nn.attention.SDPBackend.MATH]
        with torch.nn.attention.sdpa_kernel(order, set_priority=True):
            if capability == (9, 0):
                F.scaled_dot_product_attention(query, query, query)
            else:
                with pytest.raises(RuntimeError, match="not trusted"):
                    F.scaled_dot_product_attention(query, query, query)
            with pytest.raises(RuntimeError, match="wrong gradients with one head"):
                F.scaled_dot_product_attention(query[:, :1], query[:, :1], query[:, :1])
            with pytest.raises(RuntimeError, match="NaN with some masks"):
                F.scaled_dot_product_attention(query, query, query, attn_mask=torch.ones(1, 1, 1, 32, device=CUDA))


def test_bytes_live_from_allocation_to_the_last_reference() -> None:
    with fake_cuda(Card(memory=10_000)) as log:
        first = torch.zeros(1000, device=CUDA)
        view = first[:10]
        second = first + 1
        assert log.device.now == 8000
        assert torch.cuda.mem_get_info()[0] == 2000
        del first, second
        assert (log.device.now, log.device.peak) == (4000, 8000)
        del view
        assert log.device.now == 0
        moved = torch.nn.Linear(10, 10).to(CUDA)
        assert moved.weight.device == CUDA
        assert log.device.now == 440


def test_beyond_its_limit_the_card_is_out_of_memory() -> None:
    with fake_cuda(Card(), limit=1000) as log:
        held = torch.zeros(200, device=CUDA)
        with pytest.raises(torch.OutOfMemoryError):
            held + 1
        assert log.device.now == 800


def test_a_compiled_function_is_one_kernel_without_temporaries() -> None:
    with fake_cuda(Card()) as log:
        values = torch.zeros(1000, device=CUDA)
        log.mark("made")

        @torch.compile(dynamic=True)
        def scaled(values: torch.Tensor) -> torch.Tensor:
            return (values * 2 + 1).relu()

        result = scaled(values)
        assert result.shape == (1000,)
        assert log.device.peak == 8000
        assert log.traffic.kernels["scaled"] == 1
        assert log.traffic.bytes["scaled"] == 8000


def test_waits_of_the_host_are_noted() -> None:
    with fake_cuda(Card()) as log:
        values = torch.zeros(10).to(CUDA, non_blocking=True)
        torch.zeros(10, device=CUDA).copy_(torch.zeros(10), non_blocking=True)
        assert log.syncs == []
        assert isinstance(values.sum().item(), float)
        values.cpu()
        values.copy_(torch.zeros(10))
        assert bool(torch.isfinite(values).all()) is True
        torch.cuda.Stream().synchronize()
        assert log.syncs == [
            "_local_scalar_dense",
            "cuda to cpu: [10] torch.float32",
            "cpu to cuda: [10] torch.float32",
            "_local_scalar_dense",
            "Stream.synchronize",
        ]


def test_waits_of_streams_and_pinned_memory_are_noted() -> None:
    with fake_cuda(Card()) as log:
        copies, done = torch.cuda.Stream(), torch.cuda.Event()
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            done.record()
        torch.cuda.current_stream().wait_event(done)
        assert [(kind, name == copies.name) for kind, name, _ in log.waits] == [
            ("stream", True),
            ("record", True),
            ("event", False),
        ]
        torch.empty(100, pin_memory=True)
        assert log.page_locked == [400]


def test_the_allocator_rounds_splits_merges_and_releases() -> None:
    allocator = Allocator(limit=50 * MIB)
    allocator.allocate(1, 3 * MIB)
    assert (allocator.allocated, allocator.reserved) == (3 * MIB, 20 * MIB)
    allocator.allocate(2, 17 * MIB)
    assert allocator.reserved == 20 * MIB, "the rest of the segment was 17 MiB"
    allocator.free(1)
    allocator.free(2)
    allocator.allocate(3, 20 * MIB)
    assert allocator.reserved == 20 * MIB, "both blocks were merged"
    allocator.free(3)
    allocator.allocate(4, 40 * MIB)
    assert (allocator.reserved, allocator.retries, allocator.out_of_memory) == (40 * MIB, 1, 0)
    allocator.allocate(5, 20 * MIB)
    assert allocator.out_of_memory == 1


def test_expandable_segments_grow_and_fill_gaps() -> None:
    allocator = ExpandableAllocator()
    allocator.allocate(1, 3 * MIB)
    allocator.allocate(2, 30 * MIB)
    assert (allocator.allocated, allocator.reserved) == (33 * MIB, 40 * MIB), "in pages of 20 MiB"
    allocator.free(1)
    allocator.allocate(3, 2 * MIB)
    allocator.allocate(4, 7 * MIB)
    assert allocator.reserved == 40 * MIB, "the gap is split, and the rest at the end is used"
    allocator.allocate(5, 100)
    assert allocator.reserved == 42 * MIB, "small blocks have a segment of their own"
    allocator.allocate(6, 50 * MIB)
    allocator.free(2)
    allocator.free(4)
    allocator.allocate(7, 38 * MIB)
    assert allocator.reserved == 102 * MIB, "the gaps of 1, 30 and 7 MiB were one"
    assert allocator.allocated == 90 * MIB + UNIT


def test_expandable_segments_give_the_pages_of_their_gaps_back() -> None:
    allocator = ExpandableAllocator()
    for number in range(3):
        allocator.allocate(number, 50 * MIB)
    allocator.free(0)
    allocator.free(1)
    allocator.release()
    assert allocator.reserved == 60 * MIB, "the page that block 2 begins in stays"
    allocator.allocate(3, 30 * MIB)
    assert allocator.reserved == 100 * MIB
    allocator.allocate(4, 10 * MIB)
    assert allocator.reserved == 100 * MIB, "in the rest of a page"
    assert allocator.peak_reserved == 160 * MIB


def test_a_log_is_replayed_from_mark_to_mark() -> None:
    with fake_cuda(Card()) as log:
        held = torch.zeros(3 * MIB, dtype=torch.uint8, device=CUDA)
        log.mark("held")
        del held
        torch.zeros(100, device=CUDA)
        log.mark("freed")
        torch.cuda.empty_cache()
        log.mark("given back")
    held, freed, given_back = replay(log.memory)
    assert (held.name, held.allocated, held.peak_reserved) == ("held", 3 * MIB, 20 * MIB)
    assert (freed.name, freed.allocated, freed.peak_reserved) == ("freed", 0, 22 * MIB)
    assert given_back.reserved == 0
