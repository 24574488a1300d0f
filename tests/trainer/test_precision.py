"""The frozen base in int8, fp8 and nf4: that its codes are made right, and that a LoRA on it learns what it should."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from trainer.compiled import assume_compiler
from trainer.config.settings import Precision
from trainer.errors import BadInput
from trainer.lora.adapter import LoraAdapter, load_lora
from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family
from trainer.models.transformer import load_single_file
from trainer.models.types import Grid, PackedLatents
from trainer.quantization import kernels
from trainer.quantization.benchmark import FastPrecisions, fast_precisions
from trainer.quantization.formats import FORMATS
from trainer.quantization.linear import QuantizedLinear, dequantize_layers, project, set_quantize_activations
from trainer.quantization.quantize import large_weights, quantize
from trainer.tensors import write_tensors

from ..single_files import FLUX, FLUX_SIZES, KLEIN, QWEN, stored, write

SIZES = {
    FLUX: (FluxTransformer2DModel, FLUX_SIZES | {"num_layers": 4, "num_single_layers": 6}),
    QWEN: (QwenImageTransformer2DModel, {"num_layers": 8, "num_attention_heads": 2, "joint_attention_dim": 64}),
}
F32, BF16 = torch.float32, torch.bfloat16
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="nf4 needs bitsandbytes")
PRECISIONS = ["int8", "fp8", pytest.param("nf4", marks=needs_bitsandbytes)]


@pytest.fixture(scope="module", params=SIZES, ids=["flux", "qwen"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A family and a file of its transformer with ten or eight blocks, random weights in float32."""
    kind, config = SIZES[request.param]
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "transformer.safetensors"
    return open_model(request.param).family, write(path, "fp32", stored(request.param, kind(**config)))


def loss_of(family: Family, transformer: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """A training loss as a step computes it, on fixed random tensors; the timestep is one that bf16 has."""
    draw = torch.Generator().manual_seed(5)
    grids = (Grid(4, 4), Grid(4, 6))
    tokens = [
        torch.randn(1, grid.height * grid.width, transformer.config.in_channels, generator=draw) for grid in grids
    ]
    images = [PackedLatents(*pair) for pair in zip(tokens, grids, strict=True)]
    width = transformer.config.joint_attention_dim
    text = {"prompt_embeds": torch.randn(1, 20, width, generator=draw)}
    if family.info.name == "flux-kontext":
        text["pooled_prompt_embeds"] = torch.randn(1, transformer.config.pooled_projection_dim, generator=draw)
    target = torch.randn(images[0].tokens.shape, generator=draw)
    noisy, control = (PackedLatents(image.tokens.to(dtype), image.grid) for image in images)
    text = {name: tensor.to(dtype) for name, tensor in text.items()}
    velocity = family.predict(transformer, noisy, [control], text, torch.tensor([0.5]), 1.0)
    return (velocity.float() - target).square().mean()


def adapter_on(family: Family, transformer: torch.nn.Module, rank: int = 4) -> LoraAdapter:
    """A LoRA with both matrices random."""
    adapter = LoraAdapter(transformer, family.lora_targets("attention+mlp", transformer), rank, 2 * rank, seed=1)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in adapter.parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=draw)
    return adapter


# gradients


def first_gradients(base: tuple[Family, Path], precision: Precision | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of the first block's A and B matrices, each all modules in one; codes are multiplied where they can be."""
    family, path = base
    transformer = load_single_file(family, path, dtype, precision=precision).requires_grad_(False)
    set_quantize_activations(transformer, precision in ("int8", "fp8"))
    adapter = adapter_on(family, transformer)
    loss_of(family, transformer, dtype).backward()
    first = {n: p.grad for n, p in adapter.parameters.items() if n.startswith("transformer_blocks.0.")}
    assert {gradient.dtype for gradient in first.values()} == {F32}
    return [torch.cat([g.flatten() for n, g in first.items() if half in n]) for half in (".lora_A.", ".lora_B.")]


@pytest.fixture(scope="module")
def bf16_cosines(base: tuple[Family, Path]) -> tuple[list[torch.Tensor], list[float]]:
    """The exact gradients, and bf16's cosines with them."""
    exact = first_gradients(base, None, F32)
    return exact, cosines(first_gradients(base, None, BF16), exact)


def cosines(ours: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(ours, exact, strict=True)]


@pytest.mark.slow
def test_bf16_gradients_point_where_exact_ones_do(bf16_cosines: tuple[list[torch.Tensor], list[float]]):
    assert min(bf16_cosines[1]) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_on_codes_point_where_exact_ones_do(
    base: tuple[Family, Path], bf16_cosines: tuple[list[torch.Tensor], list[float]], precision: Precision
):
    exact, bf16 = bf16_cosines
    for ours, plain in zip(cosines(first_gradients(base, precision, BF16), exact), bf16, strict=True):
        assert ours >= (0.95 if precision == "nf4" else plain - 0.01)


# codes


@pytest.mark.parametrize(
    ("precision", "error"), [("int8", 0.01), ("fp8", 0.03), pytest.param("nf4", 0.1, marks=needs_bitsandbytes)]
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_codes_stand_for_the_weight(precision: Precision, error: float, dtype: torch.dtype):
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[5], weight[6] = 0, weight[6] * 1e-4
    made = quantize(weight, precision)
    assert made.quantized.element_size() * made.quantized.numel() == weight.numel() // (2 if precision == "nf4" else 1)
    assert relative(made.dequantize(F32), weight.float()) < error
    if precision != "nf4":
        assert relative(made.dequantize(F32)[6], weight[6].float()) < error, "every row has a scale of its own"
    assert made.dequantize(F32)[5].eq(0).all()


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(ours - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_file_folder_and_shards_give_the_same_codes(model: EditModel, tmp_path: Path, precision: Precision):
    plain = model.load_transformer("cpu", F32)
    plain.save_pretrained(tmp_path / "shards" / "transformer", max_shard_size="40KB")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 2
    (tmp_path / "shards" / "model_index.json").write_text("{}")
    (tmp_path / "shards" / "vae").mkdir()
    (tmp_path / "shards" / "vae" / "config.json").write_bytes((model.folder / "vae" / "config.json").read_bytes())
    file = write(tmp_path / "file.safetensors", "fp32", stored(FAMILY_FILES[model.family.info.name], plain))
    loaded = [
        model.load_transformer("cpu", F32, precision),
        open_model(model.base_model, tmp_path / "shards").load_transformer("cpu", F32, precision),
        load_single_file(model.family, file, F32, model.transformer_config(), precision),
    ]
    names = {name for name, layer in loaded[0].named_modules() if isinstance(layer, QuantizedLinear)}
    assert names == large_weights(plain)
    assert all("blocks." in name for name in names)
    state = loaded[0].state_dict()
    for other in loaded[1:]:
        assert other.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


FAMILY_FILES = {"flux-kontext": FLUX, "qwen-image-edit": QWEN, "flux2-klein": KLEIN}


def test_weights_without_values_are_quantized_where_they_are(monkeypatch: pytest.MonkeyPatch):
    """A plan is counted on such weights, also where there is a card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for precision in ("int8", "fp8"):
        quantized = quantize(torch.empty(64, 32, device="meta"), precision)
        assert quantized.quantized.device.type == "meta"


def test_plain_precisions_quantize_nothing(model: EditModel):
    for precision in ("fp32", "bf16", None):
        layers = model.load_transformer("cpu", F32, precision).modules()
        assert not any(isinstance(layer, QuantizedLinear) for layer in layers)


@pytest.mark.slow
def test_what_a_file_has_quantized_stays_as_it_is(base: tuple[Family, Path], tmp_path: Path):
    family, path = base
    state = stored(FAMILY_FILES[family.info.name], load_single_file(family, path, F32))
    file = write(tmp_path / "file.safetensors", "scaled fp8", state)
    as_stored, loaded = (load_single_file(family, file, F32, precision=precision) for precision in (None, "int8"))
    formats = [
        {name: layer.quantization.format for name, layer in t.named_modules() if isinstance(layer, QuantizedLinear)}
        for t in (as_stored, loaded)
    ]
    assert set(formats[0].values()) == {"float8_e4m3fn"}
    assert formats[0].items() <= formats[1].items()
    assert formats[1].keys() == large_weights(loaded)


def test_nf4_without_bitsandbytes_says_what_to_install(kontext: EditModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput, match="pip install"):
        kontext.load_transformer("cpu", F32, "nf4")


def test_a_damaged_index_is_named(kontext: EditModel, tmp_path: Path):
    kontext.load_transformer("cpu", F32).save_pretrained(tmp_path / "transformer", max_shard_size="40KB")
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_bytes((kontext.folder / "vae" / "config.json").read_bytes())
    model = open_model(kontext.base_model, tmp_path)
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    next((tmp_path / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(BadInput, match="does not exist"):
        model.load_transformer("cpu", F32)
    index.write_text("[]")
    with pytest.raises(BadInput, match=r"index\.json is damaged"):
        model.load_transformer("cpu", F32)


# products


def layer_of(precision: Precision, rows: int, columns: int, quantize_activations: bool = True) -> QuantizedLinear:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw) / columns**0.5
    layer = QuantizedLinear(quantize(weight, precision), columns, torch.randn(rows, generator=draw))
    set_quantize_activations(layer, quantize_activations)
    return layer


def output_and_gradient(layer: torch.nn.Module, rows: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    input = torch.randn(2, rows // 2, columns, generator=draw).to(dtype).requires_grad_()
    output = layer(input)
    output.backward(torch.randn(output.shape, generator=draw).to(dtype))
    return [output.detach().float(), input.grad.float()]


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.015), ("fp8", 0.05)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_products_of_codes_are_nearly_those_of_values(precision: Precision, error: float, dtype: torch.dtype):
    results = [
        output_and_gradient(layer_of(precision, 192, 128, quantize_activations), 40, 128, dtype)
        for quantize_activations in (True, False)
    ]
    for ours, expected in zip(*results, strict=True):
        assert 0 < relative(ours, expected) < error


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(("out_features", "in_features", "rows"), [(64, 64, 16), (64, 36, 32), (36, 64, 32)])
def test_few_rows_and_odd_shapes_are_multiplied_as_values(
    precision: Precision, out_features: int, in_features: int, rows: int
):
    results = [
        output_and_gradient(
            layer_of(precision, out_features, in_features, quantize_activations), rows, in_features, F32
        )
        for quantize_activations in (True, False)
    ]
    assert all(torch.equal(ours, expected) for ours, expected in zip(*results, strict=True))


@pytest.mark.slow
def test_rotated_codes_are_multiplied_with_rotated_inputs(base: tuple[Family, Path], tmp_path: Path):
    family, path = base
    state = stored(FAMILY_FILES[family.info.name], load_single_file(family, path, F32))
    loaded = load_single_file(family, write(tmp_path / "file.safetensors", "int8 rotated", state), F32)
    layer = next(layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear))
    assert layer.quantization.rotation
    results = []
    for quantize_activations in (True, False):
        set_quantize_activations(layer, quantize_activations)
        results.append(output_and_gradient(layer, 40, layer.in_features, F32))
    for ours, expected in zip(*results, strict=True):
        assert 0 < relative(ours, expected) < 0.015


def test_the_cpu_multiplies_values():
    assert fast_precisions(torch.device("cpu")) == FastPrecisions()


# the LoRA's layer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nothing_but_codes_and_the_input_is_kept(precision: Precision, dtype: torch.dtype):
    root = torch.nn.Sequential(layer_of(precision, 192, 128))
    LoraAdapter(root, "0", rank=4, alpha=4, seed=0)
    input = torch.randn(40, 128, dtype=dtype, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        root(input)
    held = [input, *root.parameters(), *root.buffers()]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    assert input.untyped_storage().data_ptr() in kept
    extra = sum(size for place, size in kept.items() if place not in places)
    assert extra == 40 * 4 * dtype.itemsize, "the rank's features alone are new"


@pytest.mark.slow
def test_in_float32_it_trains_as_peft_does(model: EditModel):
    from peft import LoraConfig

    ours = model.load_transformer("cpu", F32)
    adapter = adapter_on(model.family, ours)
    theirs = model.load_transformer("cpu", F32)
    targets = model.family.lora_targets("attention+mlp", theirs)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets), adapter_name="default")
    named = {n.replace(".default.", "."): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert named.keys() == adapter.parameters.keys()
    for name, parameter in named.items():
        parameter.data = adapter.parameters[name].data.clone()
    losses = []
    for transformer, parameters in ((ours, adapter.parameters), (theirs, named)):
        optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
        losses.append([])
        for _ in range(5):
            loss = loss_of(model.family, transformer, F32)
            loss.backward()
            losses[-1].append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_saved_lora_draws_on_codes_as_it_was_trained(model: EditModel, tmp_path: Path, precision: Precision):
    trained = model.load_transformer("cpu", F32, precision)
    adapter = adapter_on(model.family, trained)
    write_tensors(tmp_path / "lora.safetensors", adapter.exported(F32))
    again = model.load_transformer("cpu", F32, precision)
    load_lora(again, model.family, tmp_path / "lora.safetensors")
    bare = model.load_transformer("cpu", F32, precision)
    plain = model.load_transformer("cpu", F32, precision)
    dequantize_layers(plain, F32)
    load_lora(plain, model.family, tmp_path / "lora.safetensors")
    with torch.no_grad():
        expected = loss_of(model.family, trained, F32)
        assert loss_of(model.family, again, F32).item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss_of(model.family, plain, F32).item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss_of(model.family, bare, F32).item() != pytest.approx(expected.item(), rel=1e-5)


class Block(torch.nn.Module):
    """A residual block with a LoRA on both layers, of which the second sees few rows."""

    def __init__(self, precision: Precision | None) -> None:
        super().__init__()
        layers = [layer_of(precision or "int8", 128, 64), layer_of(precision or "int8", 64, 64)]
        self.layer, self.modulation = layers
        if precision is None:
            dequantize_layers(self, F32)
        for parameter in LoraAdapter(self, "layer|modulation", 4, 8, seed=1).parameters.values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(parameter)))

    def forward(self, hidden: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        modulation_outputs = hidden * (1 + self.modulation(modulation)[:, None])
        return hidden + torch.nn.functional.gelu(self.layer(modulation_outputs)).unflatten(-1, (2, 64)).sum(-2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, "int8", PRECISIONS[-1]])
def test_a_block_compiles_whole_under_checkpointing(precision: Precision | None):
    """Torch's own kernels run the traces: its C++ compiler takes ten seconds, and tests/gpu has its Triton kernels."""
    results = []
    for compiled in (False, True):
        block = Block(precision)
        if compiled:
            torch.compiler.reset()
            block.compile(fullgraph=True, backend="aot_eager")
        draw = torch.Generator().manual_seed(2)
        hidden, modulation = (torch.randn(*size, 64, generator=draw).requires_grad_() for size in ((2, 24), (2,)))
        output = checkpoint(block, hidden, modulation, use_reentrant=False)
        output.square().mean().backward()
        trained = [parameter.grad for parameter in block.parameters() if parameter.requires_grad]
        results.append([output.detach(), hidden.grad, modulation.grad, *trained])
    assert len(results[0]) == 7
    for ours, expected in zip(*results, strict=True):
        assert relative(ours, expected) < 1e-5


# formats that differ from the run's precision


@pytest.mark.parametrize(("capability", "multiplied"), [((8, 6), set()), ((8, 9), {"fp8"}), (None, {"fp8"})])
def test_layers_of_a_format_that_the_gpu_cannot_multiply_are_dequantized(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, multiplied: set[str]
):
    """A stored fp8 file on an RTX 30xx, whose int8 products are fast and whose fp8 ones do not exist."""
    layers = torch.nn.ModuleDict({name: layer_of(name, 64, 64) for name in ("int8", "fp8")})
    set_quantize_activations(layers, True, capability)
    called: set[str] = set()
    for name, function in (("int8", "_int_mm"), ("fp8", "_scaled_mm")):
        original = getattr(torch, function)

        def noted(*args: object, name: str = name, original: Callable[..., torch.Tensor] = original, **kwargs: object):
            called.add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(torch, function, noted)
    for layer in layers.values():
        output_and_gradient(layer, 40, 64, BF16)
    assert called == {"int8"} | multiplied


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_int8_weights_become_values_without_a_float32_copy():
    made = quantize(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), "int8")
    with Largest() as largest:
        values = made.dequantize(BF16)
    assert largest.bytes == values.nbytes
    assert torch.equal(values, (made.quantized.float() * made.scale).to(BF16)), "ComfyUI's bits"


@pytest.mark.parametrize("ggml_type", ["Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_ggml_blocks_become_values_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, ggml_type: str):
    row = FORMATS[f"gguf:{ggml_type}"]
    blocks = torch.randint(0, 60, (64, int(512 * row.bits / 8)), dtype=torch.uint8)
    whole = row.dequantize(blocks, None, BF16)
    monkeypatch.setattr(kernels, "GGML_PART_BYTES", 4 * 512 * 4)
    with Largest() as largest:
        values = row.dequantize(blocks, None, BF16)
    assert largest.bytes == values.nbytes == 64 * 512 * 2
    assert values.isfinite().all()
    assert torch.equal(values, whole)


# layers that share an input


def as_written(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)


def lora_layers(precision: Precision | None, rank: int, count: int) -> torch.nn.Module:
    """LoRA layers of one input, without a bias in the last."""
    layers = torch.nn.ModuleList(layer_of(precision or "int8", 64, 96) for _ in range(count))
    layers[-1].bias = None
    if precision is None:
        dequantize_layers(layers, F32)
        layers.to(BF16)
    for parameter in LoraAdapter(layers, r"\d", rank, 2 * rank, seed=1).parameters.values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(parameter)))
    return layers


def projected(layers: torch.nn.Module, dtype: torch.dtype, used: int, trains_input: bool = True) -> list[torch.Tensor]:
    """Outputs, and gradients of input and matrices, when only the first `used` outputs are."""
    draw = torch.Generator().manual_seed(3)
    input = torch.randn(2, 20, 96, generator=draw).to(dtype).requires_grad_(trains_input)
    outputs = project(list(layers), input)
    sum((part * torch.randn(part.shape, generator=draw).to(dtype)).sum() for part in outputs[:used]).backward()
    matrices = [parameter.grad for parameter in layers.parameters() if parameter.grad is not None]
    return [*(part.detach() for part in outputs), *([input.grad] if trains_input else []), *matrices]


@pytest.mark.parametrize(("precision", "error"), [(None, 0.01), ("int8", 0.02), ("fp8", 0.06)])
@pytest.mark.parametrize(("rank", "count", "used"), [(4, 1, 1), (4, 3, 3), (40, 3, 3), (4, 3, 2), (40, 1, 1)])
def test_layers_that_share_an_input_compute_what_each_does(
    precision: Precision | None, error: float, rank: int, count: int, used: int
):
    expected = projected(lora_layers(precision, rank, count), BF16, used)
    with assume_compiler(as_written):
        ours = projected(lora_layers(precision, rank, count), BF16, used)
        frozen_input = projected(lora_layers(precision, rank, count), BF16, used, trains_input=False)
    assert len(ours) == len(expected) == count + 1 + 2 * used
    for found, exact in zip(ours, expected, strict=True):
        assert found.dtype == exact.dtype
        assert relative(found.float(), exact.float()) < error
    del ours[count]
    assert all(map(torch.equal, frozen_input, ours))


def test_an_input_is_quantized_once_for_all_layers_that_share_it(monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []

    def run(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        called.append(function.__name__)
        return function(*args)

    with assume_compiler(run):
        projected(lora_layers("int8", 4, 3), BF16, 3)
    forward, backward = called[:4], called[4:]
    assert forward == ["_quantize", *["_rescale_low_rank"] * 3]
    assert backward == [*["_quantize"] * 3, "_rescale_sum"]
