"""The blocks' own forward passes: that they compute what diffusers' compute, and what checkpointing keeps of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from trainer import compiled
from trainer.blocks import cpu_attention
from trainer.blocks.elementwise import per_token
from trainer.blocks.install import use_blocks
from trainer.compiled import assume_compiler
from trainer.memory.checkpointing import run_checkpointed
from trainer.models.flux2_klein import Flux2Klein
from trainer.models.flux_kontext import FluxKontext
from trainer.models.qwen_image_edit import QwenImageEdit

HEADS, HEAD, IMAGE, TEXT = 2, 16, 12, 5
OURS = FluxKontext.blocks | QwenImageEdit.blocks | Flux2Klein.blocks


@dataclass(frozen=True)
class Case:
    """A block and its batch."""

    kind: type[nn.Module]
    batch: int
    masked: bool = False
    """The second text is padded."""
    two_timesteps: bool = False
    """The last image tokens are modulated by timestep 0."""


CASES = {
    "flux double": Case(FluxTransformerBlock, 1),
    "flux single": Case(FluxSingleTransformerBlock, 2),
    "flux2 double": Case(Flux2TransformerBlock, 2),
    "flux2 single": Case(Flux2SingleTransformerBlock, 2),
    "qwen": Case(QwenImageTransformerBlock, 1),
    "qwen, padded texts": Case(QwenImageTransformerBlock, 2, masked=True),
    "qwen, two timesteps": Case(QwenImageTransformerBlock, 2, masked=True, two_timesteps=True),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def block_of(case: Case, own: bool) -> nn.Module:
    torch.manual_seed(3)
    options = {"zero_cond_t": True} if case.two_timesteps else {}
    block = case.kind(dim=HEADS * HEAD, num_attention_heads=HEADS, attention_head_dim=HEAD, **options)
    for name, parameter in block.named_parameters():
        if "norm_" in name:
            nn.init.uniform_(parameter, 0.5, 2)
    if own:
        use_blocks(block, OURS)
        assert type(block) is OURS[case.kind]
        assert type(block).__name__ == case.kind.__name__
    return block


def inputs_of(case: Case, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Positional inputs in the order in which the transformers give them."""
    draw, batch = torch.Generator().manual_seed(4), case.batch
    image, text, time = (
        torch.randn(*size, HEADS * HEAD, generator=draw).to(dtype).requires_grad_()
        for size in ((batch, IMAGE), (batch, TEXT), (2 * batch if case.two_timesteps else batch,))
    )
    angles = torch.randn(TEXT + IMAGE, HEAD // 2, generator=draw)
    if case.kind in Flux2Klein.blocks:
        angles = angles.repeat_interleave(2, dim=1)
        return [*_flux2_inputs(case, image, text, draw), (angles.cos(), angles.sin())]
    if case.kind is not QwenImageTransformerBlock:
        angles = angles.repeat_interleave(2, dim=1)
        return [image, text, time, (angles.cos(), angles.sin())]
    rotary = torch.polar(torch.ones_like(angles), angles).split([IMAGE, TEXT])
    mask = torch.arange(TEXT).expand(batch, -1) < torch.tensor([[TEXT], [TEXT - 2]]) if case.masked else None
    index = (torch.arange(IMAGE) >= IMAGE // 3).int().expand(batch, -1) if case.two_timesteps else None
    return [image, text, mask, time, rotary, None, index]


def _flux2_inputs(case: Case, image: torch.Tensor, text: torch.Tensor, draw: torch.Generator) -> list[Any]:
    """Tokens and modulation, which its blocks are given ready."""
    modulations = [
        torch.randn(case.batch, 6 * HEADS * HEAD, generator=draw).to(image.dtype).requires_grad_() for _ in range(2)
    ]
    if case.kind is Flux2TransformerBlock:
        return [image, text, *modulations]
    tokens = torch.cat([text, image], dim=1).detach().requires_grad_()
    return [tokens, None, modulations[0][:, : 3 * HEADS * HEAD].detach().requires_grad_()]


def results(block: nn.Module, inputs: list[Any], run: Callable[..., Any] | None = None) -> list[torch.Tensor]:
    """Outputs, and the gradients of the inputs and of all weights that are trained."""
    outputs = run(block, *inputs) if run else block(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    draw = torch.Generator().manual_seed(5)
    loss = sum((part.float() * torch.randn(part.shape, generator=draw)).sum() for part in outputs)
    loss.backward()
    given = [tensor for tensor in inputs if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return [*(part.detach() for part in outputs), *(tensor.grad for tensor in [*given, *trained])]


def test_without_a_compiler_values_and_gradients_are_those_of_diffusers(case: Case):
    expected, ours = (results(block_of(case, own), inputs_of(case)) for own in (False, True))
    assert len(ours) > (6 if case.kind is Flux2SingleTransformerBlock else 10)
    assert all(map(torch.equal, ours, expected))


def frozen(case: Case) -> nn.Module:
    return block_of(case, own=True).requires_grad_(False)


def without_modulation_gradient(inputs: list[Any]) -> list[Any]:
    """The time embedding has no gradient where the modulation is frozen."""
    return [x.detach() if isinstance(x, torch.Tensor) and x.ndim == 2 and x.is_floating_point() else x for x in inputs]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_with_a_compiler_they_differ_by_rounding(case: Case, dtype: torch.dtype, error: float):
    expected = results(frozen(case), without_modulation_gradient(inputs_of(case)))
    called: Counter[str] = Counter()

    def run(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        called[function.__name__] += 1
        return function(*args)

    with assume_compiler(run):
        ours = results(frozen(case).to(dtype), without_modulation_gradient(inputs_of(case, dtype)))
    assert called["_norm_modulate"] and called["_join_rotated"] and called["_join_rotated_grad"]
    assert len(ours) == (2 if case.kind is Flux2SingleTransformerBlock else 4)
    for found, exact in zip(ours, expected, strict=True):
        assert found.dtype == dtype
        assert torch.linalg.vector_norm(found.float() - exact) < error * torch.linalg.vector_norm(exact)


def test_blocks_that_another_diffusers_computes_otherwise_stay_as_they_are():
    class Changed(FluxTransformerBlock):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            text, image = super().forward(*args, **kwargs)
            return text, image * 1.01

    class Renamed(FluxTransformerBlock):
        def forward(self, tokens: torch.Tensor, *args: Any) -> Any:
            return super().forward(tokens, *args)

    for kind in (Changed, Renamed):
        block = kind(dim=HEADS * HEAD, num_attention_heads=HEADS, attention_head_dim=HEAD)
        use_blocks(block, {kind: OURS[FluxTransformerBlock]})
        assert type(block) is kind


# selective checkpointing


class Attentions(TorchDispatchMode):
    """Notes the attention kernels that run, and the shapes of their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.queries: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(function) and "backward" not in str(function):
            self.kernels.append(str(function))
            self.queries.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("own", "tiles"),
    [(True, False), (False, False), (True, True)],
    ids=["own forward pass", "diffusers' forward pass", "own forward pass, attention in tiles"],
)
def test_selective_checkpointing_keeps_attention_and_changes_no_gradient(
    case: Case, own: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu_attention, "MULTIPLIES_BF16", True)
    dtype, found = torch.bfloat16 if tiles else torch.float32, []
    for run in (None, partial(run_checkpointed, selective=False), partial(run_checkpointed, selective=True)):
        block = block_of(case, own).to(dtype)  # not in the context: the first of a kind is compared with diffusers'
        with Attentions() as attentions:
            found.append((attentions, results(block, inputs_of(case, dtype), run)))
    tokens = IMAGE + TEXT
    shape = (case.batch, *((tokens, HEADS) if tiles else (HEADS, tokens)), HEAD)
    assert [attentions.queries for attentions, _ in found] == [[shape], [shape] * 2, [shape]]
    for _, ours in found[1:]:
        assert all(map(torch.equal, ours, found[0][1]))


def test_selective_checkpointing_looks_at_attention_alone(case: Case):
    """torch's own calls Python code at every operation of a block, which takes as long as the operations."""
    block, modes = block_of(case, own=True), []
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *_: modes.append(_get_current_dispatch_mode()))
    results(block, inputs_of(case), partial(run_checkpointed, selective=True))
    assert len(modes) > (3 if case.kind is Flux2SingleTransformerBlock else 6)
    assert set(modes) == {None}


# the compiler


@pytest.fixture
def compiles_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of any size are compiled on the CPU, as far as dynamo, which decides on variants, goes."""
    monkeypatch.setattr(compiled, "_failed", [])
    monkeypatch.setattr(compiled, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(compiled, "has_compiler", lambda kind: not compiled._failed)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.slow
def test_images_and_texts_of_any_size_share_compiled_variants(compiles_on_the_cpu: None):
    from torch._dynamo.utils import counters

    @compiled.compiled
    def function(tokens: torch.Tensor, gates: list[torch.Tensor]) -> torch.Tensor:
        return tokens * gates[0][:, None]

    gate, before = torch.randn(2, 1, 8), counters["stats"]["unique_graphs"]
    for batch in (1, 2):
        for length in (40, 64, 100, 333):
            whole = torch.randn(batch, length + 7, 8)
            for tokens in (whole[:, 7:], whole[:, :length], whole[:, 7:].contiguous()):
                found = function(tokens, [gate[:batch, 0]])
                assert torch.equal(found, tokens * gate[:batch, 0][:, None])
    made = counters["stats"]["unique_graphs"] - before
    assert made <= 4, "for each batch size at most one for whole tensors and one for parts of others"
    assert not compiled._failed


@pytest.mark.slow
def test_tokens_of_two_timesteps_share_compiled_variants_too(compiles_on_the_cpu: None):
    from torch._dynamo.utils import counters

    @compiled.compiled
    def function(tokens: torch.Tensor, gate: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return tokens * per_token(gate, row)

    gate, before = torch.randn(4, 8), counters["stats"]["unique_graphs"]
    for length in (40, 64, 100, 333):
        tokens, index = torch.randn(2, length, 8), (torch.arange(length) >= 20).int().expand(2, -1)
        found = function(tokens, gate, index[..., None])
        assert torch.equal(found[:, :20], tokens[:, :20] * gate[:2, None])
        assert torch.equal(found[:, 20:], tokens[:, 20:] * gate[2:, None])
    assert counters["stats"]["unique_graphs"] - before == 1
    assert not compiled._failed


def test_a_compiler_that_fails_is_given_up_once(compiles_on_the_cpu: None, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            calls.append(function.__name__)
            raise RuntimeError("Compiler: cl is not found.\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    double, triple = compiled.compiled(lambda x: 2 * x), compiled.compiled(lambda x: 3 * x)
    with pytest.warns(UserWarning, match=r"cl is not found\.\)\. Training goes on"):
        assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert triple(torch.ones(3)).tolist() == [3, 3, 3]
    assert len(calls) == 1
    assert not compiled.fuses(torch.ones(3))


def test_memory_that_runs_out_in_a_compiled_function_is_no_fault_of_the_compiler(
    compiles_on_the_cpu: None, monkeypatch: pytest.MonkeyPatch
):
    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(torch.OutOfMemoryError):
        compiled.compiled(lambda x: 2 * x)(torch.ones(3))
    assert not compiled._failed
