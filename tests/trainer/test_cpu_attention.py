"""Attention in bf16 on the CPU: that its values and gradients are right, and where it is used."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from trainer.blocks import cpu_attention
from trainer.blocks.attention import attend
from trainer.blocks.cpu_attention import multiplies_bf16, tiled_attention

from .test_blocks import Attentions

SHAPE = (2, 50, 3, 16)


def random_inputs(dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=draw).to(dtype).requires_grad_() for _ in range(3)]


def padding() -> torch.Tensor:
    """A mask whose second example ends early."""
    return (torch.arange(SHAPE[1]) < torch.tensor([[SHAPE[1]], [30]]))[:, None, None]


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, weights)]


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "MULTIPLIES_BF16", True)


@pytest.mark.parametrize("mask", [None, padding()], ids=["all tokens", "padded"])
@pytest.mark.parametrize("tile", [SHAPE[1] * 7, SHAPE[1] ** 2 * 2, 2**20], ids=["few rows", "two heads", "all"])
def test_values_and_gradients_differ_from_float64s_by_rounding(
    monkeypatch: pytest.MonkeyPatch, tile: int, mask: torch.Tensor | None
):
    monkeypatch.setattr(cpu_attention, "TILE", tile)
    inputs = random_inputs()
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    heads_first = [tensor.transpose(1, 2) for tensor in exact]
    expected = with_gradients(scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2), exact)
    for found, right in zip(with_gradients(tiled_attention(*inputs, mask), inputs), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert found.shape == SHAPE
        assert cosine_similarity(found.double().flatten(), right.flatten(), dim=0) > 0.9999
        assert (found - right).abs().max() < 0.03 * right.abs().max()


def test_padded_keys_have_no_gradient():
    inputs = random_inputs()
    _, _, of_key, of_value = with_gradients(tiled_attention(*inputs, padding()), inputs)
    assert not of_key[1, 30:].any()
    assert not of_value[1, 30:].any()
    assert of_key[0].any(dim=-1).all()


def kernels_of(inputs: list[torch.Tensor], backend: str | None = None) -> list[str]:
    with Attentions() as attentions:
        attend(*inputs, None, backend)
    return attentions.kernels


def test_bf16_alone_runs_in_tiles_and_only_on_a_fitting_processor(monkeypatch: pytest.MonkeyPatch):
    tiles = ["edit_trainer.tiled_attention.default"]
    flash = ["aten._scaled_dot_product_flash_attention_for_cpu.default"]
    assert kernels_of(random_inputs()) == tiles
    assert kernels_of(random_inputs(torch.float32)) == flash
    assert kernels_of(random_inputs(), "native") == flash, "somebody has chosen a backend"
    monkeypatch.setattr(cpu_attention, "MULTIPLIES_BF16", False)
    assert kernels_of(random_inputs()) == flash


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_a_processor_fits_by_its_units(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bf16() == expected


def test_an_older_torch_does_not_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bf16()
