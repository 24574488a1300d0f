"""Bytes of activations of a training step, measured by running blocks on tensors without storage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..compiled import assume_compiler
from ..config.request import RequestParams
from ..config.settings import Precision, RunSettings
from ..data.resize import Size
from ..lora.layer import LoraLinear
from ..models.types import Grid, PackedLatents
from ..modules import blocks_of
from ..quantization.formats import Format, format_of
from ..quantization.linear import QuantizedLinear, set_quantize_activations
from ..quantization.quantize import large_weights, quantize
from .live_bytes import CudaAutocast, LiveBytes, MetaAttention
from .plan import ActivationCheckpointing, Plan

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from ..models.edit_model import EditModel
    from ..models.family import Family


FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepShape:
    """Shape of a run's largest forward pass."""

    batch: int
    target: Size
    controls: tuple[Size, ...]
    text_controls: tuple[Size, ...]
    """Sizes at which the text encoder sees the controls."""
    dtype: torch.dtype
    """Compute dtype."""
    precision: Precision
    quantize_activations: bool
    autocast: bool = False
    """Weights are float32, cast to the compute dtype by autocast."""
    compiler: bool = False
    """The device has a compiler: see `compiled.fuses`."""


@dataclass(frozen=True, slots=True)
class BlockFootprint:
    """Bytes that a block of one class takes."""

    saved: int
    """Bytes from its forward pass to its backward pass."""
    work: int
    """Peak of its backward pass, recomputed and saved activations included, gradients of weights not."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a step's activations."""

    around: int
    """Inputs and embeddings, which live from the first block to the last."""
    tokens: int
    """Tokens of a sample in a block."""
    blocks: Mapping[str, BlockFootprint]
    """Footprints by the block's class name."""


def step_shape(
    family: Family, params: RequestParams, settings: RunSettings, plan: Plan, compiler: bool = False
) -> StepShape:
    """Shape of the forward pass for square images, whose area all buckets have, in a row that has every control image.
    `compiler`: the device has one."""
    resolution = settings.resolution or family.variant.resolution
    target = family.target_size(Size(resolution, resolution), resolution)
    control = family.control_size(target, target, settings.control_resolution)
    count = len(params.columns.controls)
    return StepShape(
        params.batch_size,
        target,
        (control,) * count,
        (family.text_control_size(target, control),) * count,
        plan.dtype,
        plan.precision,
        plan.quantize_activations,
        plan.autocast,
        compiler,
    )


def measure(
    model: EditModel,
    shape: StepShape,
    params: RequestParams,
    settings: RunSettings,
    activation_checkpointing: ActivationCheckpointing,
) -> Footprint:
    """Run some blocks of every class forward and backward without storage and count living bytes. Cached by shape."""
    trained = _trained(params, settings)
    key = (*_key(model, shape, trained), activation_checkpointing != "none")
    if key not in _FOOTPRINTS:
        _FOOTPRINTS[key] = _measured(model, shape, trained, activation_checkpointing != "none")
    found = _FOOTPRINTS[key]
    if activation_checkpointing != "selective":
        return found
    extra = _attention_bytes(model.transformer_config(), shape, found.tokens)
    blocks = {kind: BlockFootprint(block.saved + extra, block.work + extra) for kind, block in found.blocks.items()}
    return replace(found, blocks=blocks)


def forward_bytes(model: EditModel, shape: StepShape, params: RequestParams, settings: RunSettings) -> int:
    """Peak bytes of activations of a forward pass without gradients, counted as in `measure`. Cached by shape."""
    trained = _trained(params, settings)
    key = _key(model, shape, trained)
    if key not in _FORWARDS:
        config = model.transformer_config()
        _FORWARDS[key] = max(
            _Run(model.family, {**config, **change}, shape, trained, checkpointed=False).forward_peak()
            for change in model.family.few_blocks(1)
        )
    return _FORWARDS[key]


_FOOTPRINTS: dict[tuple, Footprint] = {}
_FORWARDS: dict[tuple, int] = {}


def _key(model: EditModel, shape: StepShape, trained: _Trained) -> tuple:
    config = json.dumps(dict(model.transformer_config()), sort_keys=True, default=str)
    return type(model.family), model.policy, config, shape, trained


BLOCKS = 3
"""Blocks of one class that are run. The first keeps less, for no gradient flows into its inputs, and the last works
most, before anything is freed: the second is measured between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """The trained weights."""

    rank: int | None
    """LoRA rank; None for a full fine-tune."""
    targets: str
    """`RunSettings.lora_targets`."""
    rounded: bool
    """A full fine-tune's weights are in the compute dtype, updated with stochastic rounding."""


def _trained(params: RequestParams, settings: RunSettings) -> _Trained:
    return _Trained(
        rank=params.lora_rank if params.use_lora else None,
        targets=settings.lora_targets,
        rounded=settings.optimizer == "adafactor",
    )


def _measured(model: EditModel, shape: StepShape, trained: _Trained, checkpointed: bool) -> Footprint:
    blocks = {}
    for change in model.family.few_blocks(BLOCKS):
        run = _Run(model.family, {**model.transformer_config(), **change}, shape, trained, checkpointed)
        run.measure()
        blocks[type(blocks_of(run.transformer)[0]).__name__] = BlockFootprint(run.saved, run.work)
    return Footprint(run.around, run.tokens, blocks)


def _attention_bytes(config: Mapping[str, Any], shape: StepShape, tokens: int) -> int:
    """Bytes of an attention output and the float32 log-sum-exp that its backward pass needs."""
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    return shape.batch * tokens * heads * (head * shape.dtype.itemsize + FLOAT32_BYTES)


class _Run:
    """A forward and backward pass of a transformer with `BLOCKS` blocks of one class."""

    def __init__(
        self,
        family: Family,
        config: Mapping[str, Any],
        shape: StepShape,
        trained: _Trained,
        checkpointed: bool,
    ) -> None:
        self.family, self.shape = family, shape
        # Autocast knows no meta device; fake tensors are of the CPU, and take twice the time.
        self.mode = FakeTensorMode() if shape.autocast else torch.device("meta")
        with self.mode, LiveBytes():  # which remembers layouts
            self.transformer = family.bare_transformer(config)
            self._train(family, trained, shape)
            for block in blocks_of(self.transformer):
                block.forward = _within(CudaAutocast if shape.autocast else MetaAttention, block.forward)
            if checkpointed:
                cast("ModelMixin", self.transformer).enable_gradient_checkpointing(_checkpointed)
            self.inputs = _inputs(family, config, shape)
            noisy, controls, text, _ = self.inputs
            images = sum(image.tokens.shape[1] for image in (noisy, *controls))
            self.tokens = images + text["prompt_embeds"].shape[1]

    def _train(self, family: Family, trained: _Trained, shape: StepShape) -> None:
        full = trained.rank is None
        dtype = torch.float32 if full and not trained.rounded else shape.dtype
        for module in self.transformer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                values = parameter.detach().to(dtype)
                setattr(module, name, torch.nn.Parameter(values, requires_grad=full))
        if trained.rank is None:
            return
        if made := format_of(shape.precision):
            self._quantize(shape, made)
        targets = re.compile(family.lora_targets(trained.targets, self.transformer))
        for name, layer in list(self.transformer.named_modules()):
            if targets.fullmatch(name) and isinstance(layer, torch.nn.Linear):
                self.transformer.set_submodule(name, LoraLinear(layer, trained.rank, 1.0))

    def _quantize(self, shape: StepShape, made: Format) -> None:
        # Planning needs no optional package: such a format's weights are dequantized for each matmul as fp8's are.
        precision = "fp8" if made.package else shape.precision
        for name in large_weights(self.transformer):
            layer = cast("torch.nn.Linear", self.transformer.get_submodule(name))
            quantized = quantize(layer.weight.detach(), precision)
            self.transformer.set_submodule(name, QuantizedLinear(quantized, layer.in_features, layer.bias.detach()))
        set_quantize_activations(self.transformer, shape.quantize_activations)

    def forward_peak(self) -> int:
        """Peak bytes of a forward pass without gradients."""
        live = LiveBytes([*self.transformer.parameters(), *self.transformer.buffers()])
        with self.mode, torch.no_grad(), live, self._computing(live):
            self._predict()
        return live.peak

    def measure(self) -> None:
        """Run forward and backward; sets `around`, `saved` and `work`, as in Footprint and BlockFootprint."""
        live = LiveBytes([*self.transformer.parameters(), *self.transformer.buffers()])
        marks: list[int] = []
        for block in blocks_of(self.transformer):
            block.register_forward_pre_hook(lambda *_: marks.append(live.now))
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:  # The plan counts gradients with the trained weights.
                parameter.register_post_accumulate_grad_hook(lambda trained: live.forget(cast("Any", trained.grad)))
        with self.mode, live, self._computing(live):
            self._predict().float().square().mean().backward()
        self.around, self.saved = marks[0], marks[BLOCKS - 1] - marks[BLOCKS - 2]
        self.work = live.peak - marks[BLOCKS - 1]

    @contextmanager
    def _computing(self, live: LiveBytes) -> Iterator[None]:
        """Context of a pass as the device computes it."""
        fused = assume_compiler(live.as_one_kernel) if self.shape.compiler else nullcontext()
        with fused, torch.autocast("cpu", self.shape.dtype, enabled=self.shape.autocast):
            yield

    def _predict(self) -> torch.Tensor:
        noisy, controls, text, sigma = self.inputs
        return self.family.predict(self.transformer, noisy, controls, text, sigma, 1.0)


def _within(mode: Callable[[], TorchFunctionMode], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a block's forward, recomputation included, run in a mode, which torch suspends in a backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return forward(*args, **kwargs)

    return run


def _checkpointed(block: torch.nn.Module, *inputs: Any) -> Any:
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def _inputs(
    family: Family, config: Mapping[str, Any], shape: StepShape
) -> tuple[PackedLatents, list[PackedLatents], dict[str, torch.Tensor], torch.Tensor]:
    def image(size: Size) -> PackedLatents:
        grid = Grid(size.height // family.patch, size.width // family.patch)
        tokens = torch.empty(shape.batch, grid.height * grid.width, config["in_channels"], dtype=shape.dtype)
        return PackedLatents(tokens, grid)

    text = {
        name: torch.empty(shape.batch, *own, dtype=shape.dtype)
        for name, own in family.text_shapes(config, shape.text_controls).items()
    }
    return image(shape.target), [image(control) for control in shape.controls], text, torch.empty(shape.batch)
