"""The table of quantized formats: a new one costs one row, and the rows agree with what they describe."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save_file

from trainer.config.request import TrainingParams
from trainer.config.settings import Precision, RunSettings
from trainer.device import assumed_gpu
from trainer.errors import BadInput
from trainer.memory.estimate import MemoryEstimate
from trainer.memory.weight_bytes import weight_bytes
from trainer.models.edit_model import EditModel
from trainer.models.transformer import load_single_file
from trainer.quantization.formats import FORMATS, Format, format_of
from trainer.quantization.linear import QuantizedLinear
from trainer.quantization.quantize import large_weights, quantize

from ..single_files import FLUX, KLEIN, QWEN, is_quantized, marker, stored

F32, BF16 = torch.float32, torch.bfloat16
BASE_MODELS = {"flux-kontext": FLUX, "qwen-image-edit": QWEN, "flux2-klein": KLEIN}


def quantize_int16(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 32767
    return (weight / scale).round().to(torch.int16), scale


def dequantize_int16(quantized: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return (quantized.view(torch.int16) * scale).to(dtype)


INT16 = Format(
    name="int16_rowwise",
    precision="int16",
    storage_dtype=torch.int16,
    bits=16,
    quantize=quantize_int16,
    dequantize=dequantize_int16,
    row_scales=True,
    file_dtype="I16",
    needs_scale=True,
)
"""A format that nothing outside this file knows."""


@pytest.fixture
def int16(monkeypatch: pytest.MonkeyPatch) -> str:
    """The made-up format in the table; its `precision`."""
    monkeypatch.setitem(FORMATS, INT16.name, INT16)
    return "int16"


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(ours - expected) / torch.linalg.vector_norm(expected)).item()


def test_a_new_row_quantizes_and_multiplies(int16: str):
    draw = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(96, 48)
    layer = QuantizedLinear(quantize(plain.weight.detach(), int16), 96, plain.bias.detach())
    assert layer.quantization.format == INT16.name
    results = []
    for module in (layer, plain):
        input = torch.randn(2, 20, 96, generator=draw.manual_seed(1)).requires_grad_()
        output = module(input)
        output.square().sum().backward()
        results.append([output.detach(), input.grad])
    for ours, expected in zip(*results, strict=True):
        assert 0 < relative(ours, expected) < 1e-4


@pytest.mark.slow
def test_a_new_row_is_loaded_and_counted(int16: str, model: EditModel):
    """What the planner counts are the bytes of the loaded transformer."""
    loaded = model.load_transformer("cpu", F32, int16)
    quantized = {name for name, layer in loaded.named_modules() if isinstance(layer, QuantizedLinear)}
    assert quantized == large_weights(model.empty_transformer())
    size = sum(tensor.nbytes for tensor in chain(loaded.parameters(), loaded.buffers()))
    assert weight_bytes(model, model.empty_transformer(), int16, F32).total == size
    params = TrainingParams(caption_column="c", control_image_column="b", image_column="a")
    estimate = MemoryEstimate(model, params, RunSettings(), assumed_gpu(24), int16)
    plan = next(estimate.plans())
    assert plan.line().startswith("int16")
    assert plan.expected["frozen weights"] == weight_bytes(model, model.empty_transformer(), int16, BF16).total


def write_int16(path: Path, model: EditModel, scales: bool = True) -> dict[str, torch.Tensor]:
    """A single file whose Linears are int16 and say so; the weights that were written."""
    state = stored(BASE_MODELS[model.family.info.name], model.load_transformer("cpu", F32))
    tensors = {}
    for name, tensor in state.items():
        if not is_quantized(name, tensor):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        tensors[name], scale = quantize_int16(tensor)
        tensors[f"{module}.comfy_quant"] = marker(format=INT16.name)
        if scales:
            tensors[f"{module}.weight_scale"] = scale
    save_file(tensors, path)
    return state


def test_a_new_row_is_read_from_a_single_file(int16: str, model: EditModel, tmp_path: Path):
    state = write_int16(tmp_path / "f.safetensors", model)
    loaded = load_single_file(model.family, tmp_path / "f.safetensors", F32, model.transformer_config())
    layers = [layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear)]
    assert {layer.quantization.format for layer in layers} == {INT16.name}
    plain = model.load_transformer("cpu", F32)
    for name, layer in loaded.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert relative(layer.dequantized(F32), plain.get_submodule(name).weight) < 1e-4
    assert any(is_quantized(name, tensor) for name, tensor in state.items())


def test_without_its_row_the_file_is_refused(model: EditModel, tmp_path: Path):
    write_int16(tmp_path / "f.safetensors", model)
    with pytest.raises(BadInput, match=INT16.name):
        load_single_file(model.family, tmp_path / "f.safetensors", F32, model.transformer_config())


def test_a_scale_that_the_row_asks_for_is_missed(int16: str, model: EditModel, tmp_path: Path):
    write_int16(tmp_path / "f.safetensors", model, scales=False)
    with pytest.raises(BadInput, match=r"scale .* is missing"):
        load_single_file(model.family, tmp_path / "f.safetensors", F32, model.transformer_config())


# the rows


def test_the_setting_names_the_precisions_of_the_table():
    made = {row.precision for row in FORMATS.values() if row.precision}
    assert set(get_args(Precision)) == made | {"fp32", "bf16"}
    assert set(get_args(RunSettings.model_fields["precision"].annotation)) == set(get_args(Precision)) | {"auto"}
    assert all(format_of(precision).quantize for precision in made)
    assert format_of("bf16") is format_of(None) is None


@pytest.mark.parametrize("precision", ["int8", "fp8", "nf4"])
def test_a_row_counts_the_bytes_that_it_makes(precision: Precision):
    row = format_of(precision)
    if row.package:
        pytest.importorskip("bitsandbytes")
    weight = torch.randn(48, 128)
    made = quantize(weight, precision)
    assert made.quantized.dtype == row.storage_dtype
    assert made.scale.dtype == F32
    assert row.weight_bytes(weight) == made.quantized.nbytes + made.scale.nbytes


def test_the_ggml_types_are_those_that_diffusers_reads():
    rows = {row.name.removeprefix("gguf:"): row for row in FORMATS.values() if row.name.startswith("gguf:")}
    assert rows.keys() == {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}
    for name, row in rows.items():
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert row.bits == 8 * size / values
