"""Whatever a plan keeps off the device, a step is the plain step, to the bit."""

from __future__ import annotations

import gc
import json
import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.data.resize import Size
from trainer.events import drain
from trainer.inference import DenoiseInputs, DenoiseOptions, denoise
from trainer.memory import placement as placement_module
from trainer.memory.block_streaming import next_block
from trainer.memory.host_inputs import _Inputs
from trainer.memory.live_bytes import LiveBytes
from trainer.memory.model_parts import ModelComponents
from trainer.memory.placement import compile_blocks
from trainer.memory.plan import Plan
from trainer.models.types import Grid
from trainer.modules import blocks_of
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import build_trainable

from .steps import COLUMNS, CPU, deepened, plan, random_batch, trained
from .test_init_lora import quantized


@pytest.fixture(scope="module")
def deep(kontext, qwen, klein, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    return {
        model.family.info.name: deepened(model, folder / model.family.info.name) for model in (kontext, qwen, klein)
    }


@pytest.fixture(params=["flux-kontext", "qwen-image-edit", "flux2-klein"])
def model(request, deep):
    return deep[request.param]


def count(model) -> int:
    return len(blocks_of(model.empty_transformer()))


def every(model, mode: str) -> dict:
    return {"activation_checkpointing": (mode,) * count(model)}


def plans(model) -> dict[str, Plan]:
    number = count(model)
    mixed = tuple(["none", "selective", "full"][index % 3] for index in range(number))
    return {
        "modulation": plan(modulation_on_host=True),
        "full": plan(**every(model, "full")),
        "selective": plan(**every(model, "selective")),
        "mixed": plan(activation_checkpointing=mixed),
        "inputs": plan(inputs_on_host=True, **every(model, "full")),
        "inputs of selective": plan(inputs_on_host=True, **every(model, "selective")),
        "streamed": plan(streamed=frozenset(range(number)), **every(model, "full")),
        "some streamed": plan(
            streamed=frozenset(range(1, number, 2)),
            activation_checkpointing=("none", "full") * (number // 2) + ("none",),
        ),
        "one streamed": plan(streamed=frozenset([2]), activation_checkpointing=("none", "selective", "selective")),
        "all": plan(
            streamed=frozenset(range(number)), inputs_on_host=True, modulation_on_host=True, **every(model, "full")
        ),
        "all selective": plan(
            streamed=frozenset(range(number)), inputs_on_host=True, modulation_on_host=True, **every(model, "selective")
        ),
    }


NAMES = [
    "modulation",
    "full",
    "selective",
    "mixed",
    "inputs",
    "inputs of selective",
    "streamed",
    "some streamed",
    "one streamed",
    "all",
    "all selective",
]


def some_batches(model):
    """Batches of one and two, of equal and of unequal texts, of two shapes."""
    return [
        random_batch(model, 1),
        random_batch(model, 2, (6, 6)),
        random_batch(model, 3, (6, 4)),
        random_batch(model, 4, (5,), Grid(2, 6)),
    ]


@pytest.fixture(scope="module")
def plain(deep):
    """The plain steps of each."""
    return {name: trained(model, plan(), some_batches(model)) for name, model in deep.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_plan_gives_the_plain_steps(model, plain, name):
    expected = plain[model.family.info.name]
    assert all(gradient.any() for gradient in expected.gradients[0].values())
    assert trained(model, plans(model)[name], some_batches(model)).equals(expected)


def everything(model, **how) -> Plan:
    """Every block streamed and computed again, inputs and modulation on the host."""
    streamed = frozenset(range(count(model)))
    return plan(streamed=streamed, inputs_on_host=True, modulation_on_host=True, **every(model, "full"), **how)


@pytest.mark.slow
def test_on_quantized_layers_too(model):
    def change(transformer: nn.Module) -> None:
        quantized(transformer, "int8_tensorwise")

    batches = some_batches(model)[:2]
    expected = trained(model, plan(), batches, change)
    assert trained(model, everything(model), batches, change).equals(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "buckets", "traces"), [("aot_eager", 1, 2), ("eager", 2, 5)])
def test_compiled_with_everything_off_the_device(qwen, monkeypatch, backend, buckets, traces):
    """The blocks, traced forward and backward as torch.compile does it, and forward in shapes of a second bucket too.
    torch's own kernels run the traces: its C++ compiler takes minutes for them, and tests/gpu has its Triton
    kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    batches = [random_batch(qwen, 1), random_batch(qwen, 2, (5,), Grid(2, 6))][:buckets]
    expected = trained(qwen, plan(), batches)
    counters.clear()
    compiled = trained(qwen, everything(qwen, compile=True), batches)
    assert counters["stats"]["unique_graphs"] == traces
    assert counters["aot_autograd"]["ok"] == (traces if backend == "aot_eager" else 0)
    assert not counters["graph_break"]
    assert torch.allclose(torch.stack(compiled.losses), torch.stack(expected.losses), rtol=1e-5, atol=0)
    for ours, theirs in zip(compiled.gradients, expected.gradients, strict=True):
        for name, gradient in theirs.items():
            assert torch.linalg.vector_norm(ours[name] - gradient) <= 1e-5 * torch.linalg.vector_norm(gradient)


@pytest.mark.slow
def test_drawing_with_compiled_blocks(qwen, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    components = ModelComponents(qwen, CPU, plan(compile=True))
    compile_blocks(components.transformer())
    batch = random_batch(qwen, 1)
    with torch.no_grad():
        ours, theirs = (
            qwen.family.predict(each.transformer(), batch.clean, batch.controls, batch.texts[0].text, batch.sigmas, 1.0)
            for each in (components, ModelComponents(qwen, CPU, plan()))
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def within(tensor: torch.Tensor, buffer: torch.Tensor) -> bool:
    start = buffer.data_ptr()
    return start <= tensor.data_ptr() < start + max(1, buffer.numel())


@pytest.mark.slow
def test_weights_are_where_the_plan_says(model):
    components = ModelComponents(model, CPU, everything(model))
    placement = components.placement()
    streamer, modulation = placement.streamer, placement.modulation
    layers = re.compile(model.family.modulation_layers())
    plainly = model.load_transformer("cpu", torch.float32)
    linears = {name: module for name, module in plainly.named_modules() if isinstance(module, nn.Linear)}
    size = {name: module.weight.nbytes for name, module in linears.items() if layers.fullmatch(name)}
    modulation_layers = modulation.layers if modulation else []
    assert bool(modulation) == (model.family.info.name != "flux2-klein")
    assert len(modulation_layers) == len(size)
    assert sum(layer.weights.tensors[0].nbytes for layer in modulation_layers) == sum(size.values())
    visits = []

    def running(index: int):
        def check(*_):
            slots = [slot.flat for slot in streamer._slots]
            assert len(slots) == 2
            for other, block in enumerate(streamer.blocks):
                on_device = [any(within(tensor, slot) for slot in slots) for tensor in block.tensors]
                at_home = [within(tensor, block.flat) for tensor in block.tensors]
                assert all(on_device) or (all(at_home) and other != index)
            assert all(within(t, layer.weights.flat) for layer in modulation_layers for t in layer.weights.tensors)
            visits.append(index)

        return check

    for index, block in enumerate(blocks_of(placement.transformer)):
        block.register_forward_hook(running(index))
    (batch,) = with_modulation(components, [random_batch(model, 1)], 1.0)
    build_trainable(components, TrainingParams(lora_rank=4, lora_alpha=4, **COLUMNS), RunSettings())
    micro_step(components, batch, 1, 1.0)
    blocks = list(range(count(model)))
    assert visits[: len(blocks)] == blocks
    assert set(visits) == set(blocks)
    placement.to("meta")
    assert not streamer._slots
    for block in streamer.blocks:
        assert all(within(tensor, block.flat) for tensor in block.tensors)
    away = [tensor for tensor in placement.transformer.parameters() if tensor.device.type == "cpu"]
    hosted = sum(len(layer.weights.tensors) for layer in modulation_layers)
    assert len(away) == sum(len(block.tensors) for block in streamer.blocks) + hosted


def drawn(model, how: Plan) -> torch.Tensor:
    components = ModelComponents(model, CPU, how)
    batch = random_batch(model, 7)
    negative = random_batch(model, 8, (4,)).texts[0].text if model.family.info.name == "qwen-image-edit" else None
    inputs = DenoiseInputs([batch.controls[0]], batch.texts[0].text, negative, Size(64, 64))
    return drain(denoise(components, inputs, DenoiseOptions(3, 2.5, 1)))


@pytest.mark.slow
def test_drawing_is_the_same(model):
    expected = drawn(model, plan())
    assert torch.equal(drawn(model, everything(model)), expected)
    # Passes that nobody foresaw fetch their modulation themselves.
    components = ModelComponents(model, CPU, everything(model))
    group, batch = (one := random_batch(model, 1)).texts[0], one
    plainly = ModelComponents(model, CPU, plan())
    with torch.no_grad():
        ours, theirs = (
            model.family.predict(p.transformer(), batch.clean, batch.controls, group.text, batch.sigmas, 1.0)
            for p in (components, plainly)
        )
    assert torch.equal(ours, theirs)


def kept_bytes(model, how: Plan) -> int:
    """Bytes of the device that live from a forward pass to its backward pass."""
    components = ModelComponents(model, CPU, how)
    build_trainable(components, TrainingParams(lora_rank=4, lora_alpha=4, **COLUMNS), RunSettings())
    batch = random_batch(model, 1, (6,), Grid(8, 8))
    transformer = components.transformer()
    counting = LiveBytes([*transformer.parameters(), *transformer.buffers()])
    with counting:
        result = model.family.predict(transformer, batch.clean, batch.controls, batch.texts[0].text, batch.sigmas, 1.0)
    inputs = [tensor for kept in gc.get_objects() if type(kept) is _Inputs for tensor in kept.host]
    host = sum(tensor.untyped_storage().nbytes() for tensor in inputs)  # of whole buffers
    assert (host > 0) == how.inputs_on_host
    assert result.requires_grad
    return counting.now - host


@pytest.mark.slow
def test_each_way_keeps_less(model):
    ways = [
        plan(**every(model, mode), inputs_on_host=host)
        for mode, host in (("none", False), ("selective", False), ("full", False), ("full", True))
    ]
    none, selective, full, on_host = (kept_bytes(model, way) for way in ways)
    assert none > 2 * selective
    # Tokens of 128 + 6 rows, 32 wide: the attention's output in every block, and what blocks are computed from.
    tokens = 134 * 32 * 4 * count(model)
    assert selective - full >= tokens
    assert full - on_host >= tokens


@pytest.mark.slow
def test_a_run_is_the_same_run_under_every_setting(kontext, qwen, runs):
    samples = [{"ctrl_img_url": "", "prompt": "invert it"}]
    ways = {
        "plain": {},
        "selective": {"gradient_checkpointing": "selective"},
        "modulation": {"offload": "modulation"},
        "blocks": {"offload": "blocks"},
    }
    for model in (kontext, qwen):
        outcomes = []
        for way, settings in ways.items():
            name = f"{way}-{model.family.info.name}"
            runs.run(model, name, steps=3, batch_size=2, samples=samples, settings=settings)
            folder = runs.folder / name
            pictures = [file.read_bytes() for file in sorted((folder / "samples").glob("step-*.png"))]
            run = json.loads((folder / "run.json").read_text())
            outcomes.append((runs.losses(name), pictures, run["fingerprint"], runs.weights(name)))
        for losses, pictures, fingerprint, weights in outcomes[1:]:
            assert (losses, pictures, fingerprint) == outcomes[0][:3]
            assert all(torch.equal(weights[key], value) for key, value in outcomes[0][3].items())


CUDNN = SDPBackend.CUDNN_ATTENTION


@pytest.fixture
def chosen(monkeypatch):
    """The attention backends that a CUDA device of a capability gets, in their order; torch's own: none."""

    def choose(capability: tuple[int, int], masked: bool = False, heads: int = 24) -> list[SDPBackend]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        asked: list[SDPBackend] = []
        monkeypatch.setattr(
            placement_module, "sdpa_kernel", lambda order, set_priority: asked.extend(order) or nullcontext()
        )
        with placement_module.attention_backend(torch.device("cuda", 0), masked, heads):
            return asked

    return choose


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_cudnn_attention_comes_first_where_it_is_right(chosen, capability):
    assert chosen(capability)[0] == CUDNN
    for wrong in (chosen(capability, masked=True), chosen(capability, heads=1)):
        assert wrong
        assert CUDNN not in wrong


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (10, 3), (12, 0), (12, 1)])
def test_other_cards_keep_torchs_own_attention(chosen, capability):
    assert chosen(capability) == []


@pytest.mark.parametrize("disabled", ["cudnn", "flash", "mem_efficient", "math"])
def test_attention_that_torch_has_turned_off_stays_off(chosen, disabled):
    every = chosen((9, 0))
    enable = getattr(torch.backends.cuda, f"enable_{disabled}_sdp")
    enable(False)
    try:
        rest = chosen((9, 0))
    finally:
        enable(True)
    assert len(rest) == len(every) - 1
    assert not any(disabled.removeprefix("mem_") in backend.name.lower() for backend in rest)


@pytest.mark.slow
def test_a_pass_with_masked_padding_says_so(qwen, monkeypatch):
    """Captions of unequal lengths share a pass, their padding masked."""
    seen = []
    real = placement_module.attention_backend
    monkeypatch.setattr(placement_module, "attention_backend", lambda *args: seen.append(args[1]) or real(*args))
    trained(qwen, plan(), [random_batch(qwen, 1, (6, 6)), random_batch(qwen, 2, (6, 4))])
    assert seen == [False, True]


@pytest.mark.parametrize(("count", "order"), [(1, "0000"), (2, "01100110"), (4, "0123321001233210")])
def test_the_next_block_in_training(count, order):
    previous = -1
    for index, block in enumerate(order[:-1]):
        expected = next((int(later) for later in order[index + 1 :] if later != block), int(block))
        assert next_block(int(block), previous, count, training=True) == (expected if count > 1 else 0)
        previous = int(block)
