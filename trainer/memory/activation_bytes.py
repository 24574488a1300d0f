"""Bytes of activations of a training step, measured by running blocks on tensors without storage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..config.request import RequestParams
from ..config.settings import Precision, RunSettings
from ..data.resize import Size
from ..modules import blocks_of
from .few_blocks import FewBlocks, Trained
from .plan import ActivationCheckpointing, Plan

if TYPE_CHECKING:
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
    last_work: int
    """Peak of the last block, whose text stream has no gradient: nothing reads its output."""


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
    blocks = {
        kind: BlockFootprint(block.saved + extra, block.work + extra, block.last_work + extra)
        for kind, block in found.blocks.items()
    }
    return replace(found, blocks=blocks)


def forward_bytes(model: EditModel, shape: StepShape, params: RequestParams, settings: RunSettings) -> int:
    """Peak bytes of activations of a forward pass without gradients, counted as in `measure`. Cached by shape."""
    trained = _trained(params, settings)
    key = _key(model, shape, trained)
    if key not in _FORWARDS:
        config = model.transformer_config()
        _FORWARDS[key] = max(
            FewBlocks(model.family, {**config, **change}, shape, trained, checkpointed=False).forward_peak()
            for change in model.family.few_blocks(1)
        )
    return _FORWARDS[key]


_FOOTPRINTS: dict[tuple, Footprint] = {}
_FORWARDS: dict[tuple, int] = {}


def _key(model: EditModel, shape: StepShape, trained: Trained) -> tuple:
    config = json.dumps(dict(model.transformer_config()), sort_keys=True, default=str)
    return type(model.family), model.policy, config, shape, trained


BLOCKS = 3
"""Blocks of one class that are run. The first keeps less, for no gradient flows into its inputs, and the last works
most, before anything is freed: the second is measured between them."""


def _trained(params: RequestParams, settings: RunSettings) -> Trained:
    return Trained(
        rank=params.lora_rank if params.use_lora else None,
        targets=settings.lora_targets,
        rounded=settings.optimizer == "adafactor",
    )


def _measured(model: EditModel, shape: StepShape, trained: Trained, checkpointed: bool) -> Footprint:
    blocks = {}
    for change in model.family.few_blocks(BLOCKS):
        run = FewBlocks(model.family, {**model.transformer_config(), **change}, shape, trained, checkpointed)
        run.measure()
        blocks[type(blocks_of(run.transformer)[0]).__name__] = BlockFootprint(run.saved, run.work, run.last_work)
    return Footprint(run.around, run.tokens, blocks)


def _attention_bytes(config: Mapping[str, Any], shape: StepShape, tokens: int) -> int:
    """Bytes of an attention output and the float32 log-sum-exp that its backward pass needs."""
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    return shape.batch * tokens * heads * (head * shape.dtype.itemsize + FLOAT32_BYTES)
