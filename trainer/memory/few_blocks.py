"""A transformer of few blocks on tensors without storage, run forward and backward to count living bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import register_multi_grad_hook
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..compiled import assume_compiler
from ..data.resize import Size
from ..lora.layer import LoraLinear
from ..models.types import Grid, PackedLatents
from ..modules import blocks_of
from ..quantization.formats import Format, format_of
from ..quantization.linear import QuantizedLinear, set_quantize_activations
from ..quantization.quantize import large_weights, quantize
from .live_bytes import CudaAutocast, LiveBytes, MetaAttention

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from ..models.family import Family
    from .activation_bytes import StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The trained weights."""

    rank: int | None
    """LoRA rank; None for a full fine-tune."""
    targets: str
    """`RunSettings.lora_targets`."""
    rounded: bool
    """A full fine-tune's weights are in the compute dtype, updated with stochastic rounding."""


class FewBlocks:
    """A forward and backward pass of a transformer with some blocks of one class, at least two."""

    def __init__(
        self,
        family: Family,
        config: Mapping[str, Any],
        shape: StepShape,
        trained: Trained,
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
            tokens = [image.tokens for image in (noisy, *controls)]
            self.tokens = sum(image.shape[1] for image in tokens) + text["prompt_embeds"].shape[1]
            self.input_bytes = sum(tensor.nbytes for tensor in (*tokens, *text.values()))
            self.input_bytes += 2 * noisy.tokens.numel() * torch.float32.itemsize  # clean latents and noise

    def _train(self, family: Family, trained: Trained, shape: StepShape) -> None:
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
            quantized, bias = quantize(layer.weight.detach(), precision), layer.bias
            bias = None if bias is None else bias.detach()
            self.transformer.set_submodule(name, QuantizedLinear(quantized, layer.in_features, bias))
        set_quantize_activations(self.transformer, shape.quantize_activations)

    def forward_peak(self) -> int:
        """Peak bytes of a forward pass without gradients."""
        live = LiveBytes([*self.transformer.parameters(), *self.transformer.buffers()])
        with self.mode, torch.no_grad(), live, self._computing(live):
            self._predict()
        return self.input_bytes + live.peak

    def measure(self) -> None:
        """Run forward and backward; sets `around`, `saved`, `work` and `last_work`: see Footprint, BlockFootprint."""
        live = LiveBytes([*self.transformer.parameters(), *self.transformer.buffers()])
        blocks = blocks_of(self.transformer)
        marks: list[int] = []
        peaks: list[int] = []

        def begin(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            marks.append(live.now)
            if len(marks) == len(blocks):
                inputs = [value for value in (*args, *kwargs.values()) if _has_gradient(value)]
                register_multi_grad_hook(inputs, end_of_last)

        def end_of_last(_: object) -> None:
            peaks.append(live.peak)
            live.peak = live.now

        for block in blocks:
            block.register_forward_pre_hook(begin, with_kwargs=True)
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:  # The plan counts gradients with the trained weights.
                parameter.register_post_accumulate_grad_hook(lambda trained: live.forget(cast("Any", trained.grad)))
        with self.mode, live, self._computing(live):
            velocity = self._predict()
            velocity.float().square().mean().backward()
        self.around, self.saved = self.input_bytes + marks[0], marks[len(blocks) - 1] - marks[len(blocks) - 2]
        self.work, self.last_work = live.peak - marks[len(blocks) - 2], peaks[0] - marks[len(blocks) - 1]

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


def _has_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


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
