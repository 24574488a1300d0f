"""Single files of ComfyUI's: every layout and number format gives the weights that were written, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from trainer.errors import BadInput
from trainer.families.records import CONFIGS
from trainer.lora.adapter import LoraAdapter
from trainer.memory.hosted_weights import HostedWeights
from trainer.memory.modulation import modulation_linears
from trainer.memory.plan import Plan
from trainer.models.edit_model import open_model
from trainer.models.family import family_class
from trainer.models.model_files import ModelFiles
from trainer.models.transformer import load_folder, load_single_file
from trainer.modules import blocks_of
from trainer.quantization.kernels import float8_values
from trainer.quantization.linear import QuantizedLinear, dequantize_layers
from trainer.single_file.key_mapping import to_stored
from trainer.single_file.load_module import ON_CPU, WeightSink

from ..single_files import FLUX, FLUX_SIZES, FORMATS, QWEN, is_quantized, plain, stored, write

pytestmark = pytest.mark.slow

SMALL = {
    FLUX: (FluxTransformer2DModel, FLUX_SIZES),
    QWEN: (QwenImageTransformer2DModel, {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64}),
}
F32 = torch.float32


@pytest.fixture(scope="module", params=SMALL, ids=["flux", "qwen"])
def base_model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def transformer(base_model: str) -> torch.nn.Module:
    kind, config = SMALL[base_model]
    torch.manual_seed(0)
    return kind(**config).eval().requires_grad_(False)


def family_of(base_model: str):
    return open_model(base_model).family


def test_a_file_and_back_is_bitwise_the_same(base_model: str, transformer: torch.nn.Module, tmp_path: Path):
    state = stored(base_model, transformer)
    loaded = load_single_file(family_of(base_model), write(tmp_path / "f.safetensors", "fp32", state), F32)
    expected = transformer.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    again = stored(base_model, loaded)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items()) and again.keys() == state.keys()


def test_our_layout_is_the_one_diffusers_reads():
    """diffusers' own converter, which knows the full width alone: one block of each kind, in whole numbers."""
    kind, _ = SMALL[FLUX]
    with torch.device("meta"):
        transformer = kind(num_layers=1, num_single_layers=1, guidance_embeds=True)
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randint(-128, 128, tensor.shape, generator=draw, dtype=torch.int8)
        for name, tensor in transformer.state_dict().items()
    }
    layout = family_class(FLUX).layout(None, transformer)
    read = convert_flux_transformer_checkpoint_to_diffusers(dict(to_stored(layout, state)))
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_weights_that_were_written(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, kind: str
):
    state = stored(base_model, transformer)
    loaded = load_single_file(family_of(base_model), write(tmp_path / "f.safetensors", kind, state), F32)
    quantized = [layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear)]
    assert bool(quantized) != kind.startswith(("fp32", "bf16", "fp16")), "quantized weights stay as stored"
    dequantize_layers(loaded, F32)
    tolerance = {"fp32": 0.0, "fp16": 1e-3, "bf16": 4e-3, "comfy_quant e5m2": 0.1}.get(kind.split(",")[0], 0.05)
    for name, tensor in stored(base_model, loaded).items():
        error = torch.linalg.vector_norm(tensor - state[name]) / torch.linalg.vector_norm(state[name])
        assert error <= tolerance, f"{name} {error}"


@pytest.mark.parametrize("kind", ["scaled fp8", "int8 rotated"])
def test_a_quantized_layer_learns_like_its_plain_self(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, kind: str
):
    """A LoRA on a quantized base: its gradients, and what is kept for the backward pass."""
    path = write(tmp_path / "f.safetensors", kind, stored(base_model, transformer))
    gradients, kept = [], []
    for plain_layers in (False, True):
        loaded = load_single_file(family_of(base_model), path, F32)
        if plain_layers:
            dequantize_layers(loaded, F32)
        adapter = LoraAdapter(loaded, r".*transformer_blocks\.0\.attn\.(to_q|to_out\.0)", 4, 4, seed=1)
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        with saved_bytes() as saved:
            velocity(base_model, loaded).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in adapter.parameters.items()})
        kept.append(saved[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)
    assert kept[0] < kept[1], "no dequantized weight is kept for the backward pass"


class saved_bytes:
    """Counts the bytes that autograd keeps, each storage once."""

    def __enter__(self) -> list[int]:
        self.total, self.seen = [0], {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.seen:
                self.seen[storage.data_ptr()] = tensor
                self.total[0] += storage.nbytes()
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self.total

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


def velocity(base_model: str, transformer: torch.nn.Module) -> torch.Tensor:
    """One prediction on fixed random input."""
    family = family_of(base_model)
    draw = torch.Generator().manual_seed(5)
    noisy, control = (family.pack(torch.randn(1, 16, *size, generator=draw)) for size in ((8, 8), (8, 12)))
    text = {"prompt_embeds": torch.randn(1, 7, 64, generator=draw)}
    if base_model == FLUX:
        text["pooled_prompt_embeds"] = torch.randn(1, 32, generator=draw)
    return family.predict(transformer, noisy, [control], text, torch.tensor([0.6]), 2.5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_model_can_be_moved_between_formats_without_harm(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, precision: torch.dtype
):
    path = write(tmp_path / "f.safetensors", "comfy_quant fp8", stored(base_model, transformer))
    loaded = load_single_file(family_of(base_model), path, precision)
    layer = next(layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear))
    before = layer.weight.clone()
    loaded.to(torch.bfloat16).float()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_device_without_float8_reads_the_same_values(float8: torch.dtype):
    quantized = torch.arange(256, dtype=torch.uint8).view(torch.int8).reshape(16, 16)
    for dtype in (torch.bfloat16, F32):
        values = [float8_values(quantized, float8, dtype, by_table) for by_table in (False, True)]
        assert torch.equal(values[0].nan_to_num(-1.0), values[1].nan_to_num(-1.0))


# GGUF


def write_gguf(path: Path, state: dict[str, torch.Tensor], kind: gguf.GGMLQuantizationType) -> Path:
    """The Linears quantized where their rows are whole blocks: by gguf itself where it can, else as random codes that
    are valid."""
    writer = gguf.GGUFWriter(path, "flux")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if not is_quantized(name, tensor) or values.shape[1] % block:
            writer.add_tensor(name, values)
            continue
        try:
            quantized = gguf.quants.quantize(values, kind)
        except NotImplementedError:
            quantized = random.integers(0, 60, (values.shape[0], values.shape[1] // block * size), dtype=np.uint8)
        writer.add_tensor(name, quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q4_0", "Q4_K", "Q6_K", "Q2_K", "BF16"])
def test_gguf_weights_are_what_gguf_itself_reads(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, name: str
):
    kind = gguf.GGMLQuantizationType[name]
    path = write_gguf(tmp_path / "f.gguf", stored(base_model, transformer), kind)
    loaded = load_single_file(family_of(base_model), path, F32)
    assert any(isinstance(layer, QuantizedLinear) for layer in loaded.modules())
    dequantize_layers(loaded, F32)
    ours = stored(base_model, loaded)
    reader = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == ours.keys()
    for tensor in reader.tensors:
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        expected = expected.reshape(ours[tensor.name].shape)
        error = torch.linalg.vector_norm(ours[tensor.name] - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-3, f"{tensor.name} {error}, more than fp16 rounds"


def test_a_gguf_type_that_cannot_be_read_is_named(base_model: str, transformer: torch.nn.Module, tmp_path: Path):
    path = write_gguf(tmp_path / "f.gguf", stored(base_model, transformer), gguf.GGMLQuantizationType.IQ2_XS)
    with pytest.raises(BadInput, match="IQ2_XS"):
        open_model(base_model, files=ModelFiles(transformer=path))


# refusals


@pytest.mark.parametrize("kind", ["scaled fp8", "comfy_quant fp8", "int8 a row"])
def test_a_scaled_file_without_its_scales_is_refused(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, kind: str
):
    tensors = FORMATS[kind](stored(base_model, transformer))
    dropped = next(name for name in tensors if name.endswith((".scale_weight", ".weight_scale")))
    if kind == "scaled fp8":
        tensors[f"{dropped.removesuffix('.scale_weight')}.weight"] = torch.zeros(1, dtype=torch.float8_e4m3fn)
    del tensors[dropped]
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(BadInput, match=dropped.rpartition(".")[0]):
        open_model(base_model, files=ModelFiles(transformer=tmp_path / "f.safetensors"))


def test_missing_and_left_over_keys_are_named(base_model: str, transformer: torch.nn.Module, tmp_path: Path):
    tensors = plain(stored(base_model, transformer), torch.bfloat16)
    dropped = next(reversed(tensors))
    del tensors[dropped]
    tensors["stranger.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(BadInput) as refusal:
        open_model(base_model, files=ModelFiles(transformer=tmp_path / "f.safetensors"))
    assert f"{dropped} is missing" in str(refusal.value)
    assert "stranger.weight does not belong there" in str(refusal.value)


# the bundled configs


@pytest.mark.parametrize("base_model", SMALL)
def test_bundled_configs_open_the_published_parts(base_model: str):
    family = family_class(base_model)
    model = open_model(base_model)
    assert (CONFIGS / family.info.name).is_dir()
    assert model.family.vae_config["_class_name"].startswith("Autoencoder")
    assert model.load_scheduler().config.use_dynamic_shifting


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("source", ["fp32", "scaled fp8", "int8 rotated", "gguf", "shards"])
def test_the_host_gets_its_part_of_every_source(
    base_model: str, transformer: torch.nn.Module, tmp_path: Path, source: str, precision: str
):
    """It is what a plain load gives, in the buffers of the plan; the rest is on the device, for which `meta` stands."""
    family, state = family_of(base_model), stored(base_model, transformer)

    def load(sink: WeightSink) -> torch.nn.Module:
        if source == "shards":
            return load_folder(family, tmp_path, F32, transformer.config, precision, sink)
        return load_single_file(family, tmp_path / "file", F32, None, precision, sink)

    if source == "shards":
        transformer.save_pretrained(tmp_path, max_shard_size="40KB")
    elif source == "gguf":
        write_gguf(tmp_path / "file", state, gguf.GGMLQuantizationType.Q8_0)
    else:
        write(tmp_path / "file", source, state)
    plan = Plan(precision=precision, dtype=F32, offload="auto", modulation_on_host=True, streamed=frozenset([0]))
    hosted = HostedWeights(family, plan, torch.device("meta"))
    ours, plainly = load(hosted), load(ON_CPU)
    first = next(name for name, module in plainly.named_modules() if module is blocks_of(plainly)[0])
    modulation = re.compile(family.modulation_layers())
    expected = {
        name: tensor
        for name, tensor in plainly.state_dict().items()
        if name.startswith(f"{first}.") or modulation.fullmatch(name.rpartition(".")[0])
    }
    on_host = {name: tensor for name, tensor in ours.state_dict().items() if tensor.device.type == "cpu"}
    assert on_host.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in on_host.items())
    layers = len(modulation_linears(ours, family.modulation_layers()))
    assert len({tensor.untyped_storage().data_ptr() for tensor in on_host.values()}) == layers + 1
