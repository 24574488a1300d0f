"""Memory estimate of one request: device and host memory, plan by plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..config.request import RequestParams
from ..config.settings import Precision, RunSettings
from ..device import DeviceInfo
from ..quantization.formats import format_of
from .activation_bytes import Footprint, measure, step_shape
from .plan import ACTIVATIONS, FROZEN, SLOTS, TRAINED, ActivationCheckpointing, Plan
from .weight_bytes import KEPT_TRANSFORMERS, linears_of, weight_bytes

if TYPE_CHECKING:
    from ..models.edit_model import EditModel
    from ..models.family import Family


FULL_SIZE_PARAMETERS = 1_000_000_000
"""Full fine-tunes of fewer weights are not announced. A judgement: they take less than 16 GB."""


def full_fine_tune_need(model: EditModel, settings: RunSettings, devices: int = 1) -> str | None:
    """Describe for the user what a full fine-tune of this model takes, sharded over `devices`; None for a small one."""
    parameters = model.transformer_parameters()
    if parameters < FULL_SIZE_PARAMETERS:
        return None
    gigabytes = parameters * (full_fine_tune_bytes(settings.optimizer) + average_bytes(settings)) / 1e9
    where = "on the device" if devices == 1 else f"sharded over {devices} devices"
    return (
        f"A full fine-tune trains all {parameters / 1e9:.1f} billion weights: about {gigabytes:.0f} GB {where} for "
        f"weights, gradients and {settings.optimizer}'s state, and more for activations; the saved file takes "
        f"{parameters * 2 / 1e9:.0f} GB in bf16."
    )


TRAINED_BYTES = {"adamw": 16, "adamw8bit": 10, "adafactor": 8}
"""Bytes a trained weight: value and gradient in float32 (8), and two moments in float32 (8) or 8 bits (2); Adafactor's
factored state is negligible."""


SMALL_MODEL_BYTES = 100_000_000
"""Bytes of weights. Activations of smaller models are not measured on the CPU: it takes seconds. A judgement."""


MODULATION_EXAMPLES = 64
"""Examples whose modulation outputs wait in host memory at most: two groups of the 32 that are computed at a time."""


def computation_dtype(precision: Precision, device_info: DeviceInfo) -> torch.dtype:
    """Choose the compute dtype, which weights that are not quantized have too."""
    if format_of(precision):
        return torch.bfloat16 if device_info.bf16 else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def quantizes_activations(precision: Precision, settings: RunSettings, device_info: DeviceInfo) -> bool:
    """Tell whether matmuls with weights quantized to `precision`, or so stored, run in the storage dtype."""
    if settings.quantize_activations != "auto":
        return settings.quantize_activations == "on"
    return precision in device_info.fast_precisions


def full_fine_tune_bytes(optimizer: str, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes a weight of a full fine-tune: value, gradient and optimizer state. With adafactor the first two are in the
    compute `dtype`."""
    return 2 * dtype.itemsize if optimizer == "adafactor" else TRAINED_BYTES[optimizer]


def average_bytes(settings: RunSettings) -> int:
    """Bytes a trained weight of its moving average, which is float32."""
    return 4 if settings.ema_decay else 0


class MemoryEstimate:
    """Memory that one request needs with the base in one precision, plan by plan."""

    def __init__(
        self,
        model: EditModel,
        params: RequestParams,
        settings: RunSettings,
        device_info: DeviceInfo,
        precision: Precision,
    ) -> None:
        self.params, self.settings, self.device_info = params, settings, device_info
        self.precision: Precision = precision
        self.dtype = computation_dtype(precision, device_info)
        transformer = _empty_transformer(model)
        self.trainable = _trainable(model, transformer, params, settings)
        self._modulation_outputs = _outputs(transformer, model.family)
        self.weights = weight_bytes(model, transformer, precision, self.dtype)
        self._measured: dict[ActivationCheckpointing, Footprint] = {}
        self.model, self.shape = model, step_shape(model.family, params, settings, self._plan(), device_info.compiler)

    @property
    def least(self) -> int:
        """Bytes of device memory that every plan takes: the trained weights, and the frozen ones outside the blocks."""
        return self._trained + (self.weights.around if self.params.use_lora else 0)

    @property
    def _trained(self) -> int:
        """Bytes of the trained weights, their gradients and the optimizer's state."""
        optimizer = self.settings.optimizer
        each = TRAINED_BYTES[optimizer] if self.params.use_lora else full_fine_tune_bytes(optimizer, self.dtype)
        return self.trainable * (each + average_bytes(self.settings))

    def _footprint(self, activation_checkpointing: ActivationCheckpointing) -> Footprint:
        if activation_checkpointing not in self._measured:
            self._measured[activation_checkpointing] = measure(
                self.model, self.shape, self.params, self.settings, activation_checkpointing
            )
        return self._measured[activation_checkpointing]

    def plans(self) -> Iterator[Plan]:
        """Yield the plans that the settings allow, from the fastest to the smallest."""
        for plan in self._levers():
            yield replace(plan, expected=self.expected(plan), inputs_host_bytes=self._inputs_on_host(plan))

    def _levers(self) -> Iterator[Plan]:
        settings, blocks = self.settings, len(self.weights.blocks)
        plan = self._plan()
        # Modulation that is trained or set to the device stays; otherwise offloading it costs next to nothing.
        host = settings.offload in ("auto", "modulation", "blocks") and not self.device_info.is_cpu
        host = (host or settings.offload in ("modulation", "blocks")) and self._modulation_is_frozen
        if settings.offload == "blocks":
            yield self._streaming(replace(plan, modulation_on_host=host), blocks, blocks)
            return
        modes = self._checkpointing_modes(blocks)
        if not (host and settings.offload == "modulation"):
            yield replace(plan, activation_checkpointing=next(iter(modes)))
        offloaded = replace(plan, modulation_on_host=host)
        for activation_checkpointing in modes:
            yield replace(offloaded, activation_checkpointing=activation_checkpointing)
        if settings.offload != "auto" or self.device_info.is_cpu or not self.params.use_lora:
            return
        if settings.gradient_checkpointing not in ("auto", "on"):
            return
        for count in range(blocks + 1):
            yield self._streaming(offloaded, blocks, count)

    def _plan(self) -> Plan:
        """Plan with everything on the device and no checkpointing."""
        return Plan(
            precision=self.precision,
            dtype=self.dtype,
            offload="phases" if self.settings.offload in ("modulation", "blocks") else self.settings.offload,
            quantize_activations=quantizes_activations(self.precision, self.settings, self.device_info),
            autocast=not self.params.use_lora
            and self.settings.optimizer != "adafactor"
            and self.dtype != torch.float32,
            compile=self.settings.compile == "on",
        )

    @property
    def _modulation_is_frozen(self) -> bool:
        """True if there are modulation layers to offload and none of them is trained."""
        frozen = self.params.use_lora and self.settings.lora_targets != "all-linear"
        return frozen and any(self.weights.modulation)

    def _checkpointing_modes(self, blocks: int) -> list[tuple[ActivationCheckpointing, ...]]:
        """Checkpointing modes of the blocks, the fastest first. The last blocks, whose backward pass comes first, save
        the most."""
        wanted = self.settings.gradient_checkpointing
        if wanted != "auto":
            modes: dict[str, ActivationCheckpointing] = {"on": "full", "off": "none", "selective": "selective"}
            return [_repeat(modes[wanted], blocks)]
        ways = [_repeat("none", blocks)]
        # Compiled attention is no separate operation to save: it is recomputed with the rest.
        cheap: ActivationCheckpointing = "full" if self.settings.compile == "on" else "selective"
        ways += [_repeat(cheap, count) + _repeat("none", blocks - count) for count in range(1, blocks + 1)]
        if cheap == "selective":
            ways += [_repeat("full", count) + _repeat("selective", blocks - count) for count in range(1, blocks + 1)]
        return ways

    def _streaming(self, plan: Plan, blocks: int, count: int) -> Plan:
        """Plan with all blocks checkpointed, inputs in host memory, and `count` of them, evenly spread, streamed."""
        return replace(
            plan,
            activation_checkpointing=("full",) * blocks,
            inputs_on_host=True,
            streamed=spread_blocks(blocks, count),
        )

    def expected(self, plan: Plan) -> dict[str, int]:
        """Estimate the bytes of device memory by use."""
        weights = self.weights
        resident = weights.around + sum(size for index, size in enumerate(weights.blocks) if index not in plan.streamed)
        modulation = 0 if plan.modulation_on_host else sum(weights.modulation)
        streamed = [weights.blocks[index] for index in plan.streamed]
        if not self.params.use_lora:
            resident, modulation = 0, 0
        saved, work = self._activations(plan)
        components = {
            FROZEN: resident + modulation,
            SLOTS: 2 * max(streamed, default=0),
            TRAINED: self._trained,
            ACTIVATIONS: saved,
            "workspace of the largest block": work,
            "driver and allocator": self.device_info.reserve(saved + work),
        }
        return {name: size for name, size in components.items() if size}

    def host_bytes(self, plan: Plan) -> int:
        """Estimate the bytes of host memory that training takes besides; 0 on the CPU, where it is the device's."""
        if self.device_info.is_cpu:
            return 0
        modulation = 0
        if plan.modulation_on_host:
            modulation = sum(self.weights.modulation) + self._outputs_bytes(MODULATION_EXAMPLES)
        streamed = sum(self.weights.blocks[index] for index in plan.streamed)
        return modulation + streamed + plan.inputs_host_bytes

    def _outputs_bytes(self, examples: int) -> int:
        """Bytes of what the modulation layers compute for that many examples."""
        return examples * self._modulation_outputs * self.dtype.itemsize

    def _inputs_on_host(self, plan: Plan) -> int:
        """Bytes of the inputs of checkpointed blocks that wait in host memory."""
        if not plan.inputs_on_host:
            return 0
        return sum(self._footprint("full").blocks[kind].saved for kind in self.weights.block_kinds)

    def _activations(self, plan: Plan) -> tuple[int, int]:
        """Bytes of saved activations, and of the workspace of the block, at the peak of the backward pass."""
        if self.device_info.is_cpu and self.weights.total < SMALL_MODEL_BYTES:
            return 0, 0
        saved, peak, at_peak = self._footprint(plan.activation_checkpointing_of(0)).around, 0, (0, 0)
        for index, kind in enumerate(self.weights.block_kinds):
            mode = plan.activation_checkpointing_of(index)
            block = self._footprint(mode).blocks[kind]
            work = block.last_work if index == len(self.weights.block_kinds) - 1 else block.work
            if saved + work > peak:
                peak, at_peak = saved + work, (saved, work)
            if not (plan.inputs_on_host and mode == "full"):
                saved += block.saved
        # While a block is recomputed, the inputs of the one before are fetched from the host.
        fetched = max(block.saved for block in self._footprint("full").blocks.values()) if plan.inputs_on_host else 0
        modulation = self._outputs_bytes(self.params.batch_size) if plan.modulation_on_host else 0
        return at_peak[0] + fetched + modulation, at_peak[1]


def _empty_transformer(model: EditModel) -> torch.nn.Module:
    """The model's transformer without storage, of which the last are kept: building one takes seconds."""
    key = type(model.family), json.dumps(dict(model.transformer_config()), sort_keys=True, default=str)
    if key not in _EMPTY:
        if len(_EMPTY) == KEPT_TRANSFORMERS:
            del _EMPTY[next(iter(_EMPTY))]
        _EMPTY[key] = model.empty_transformer()
    return _EMPTY[key]


_EMPTY: dict[tuple, torch.nn.Module] = {}


def _repeat(mode: ActivationCheckpointing, count: int) -> tuple[ActivationCheckpointing, ...]:
    single: tuple[ActivationCheckpointing, ...] = (mode,)
    return single * count


def spread_blocks(blocks: int, count: int) -> frozenset[int]:
    """Choose `count` of the blocks, evenly spread, so that copies overlap with the other blocks' compute."""
    return frozenset(index * blocks // count for index in range(count))


def _outputs(transformer: torch.nn.Module, family: Family) -> int:
    """Values that the modulation layers compute for one example."""
    named = re.compile(family.modulation_layers())
    return sum(
        family.modulation_rows(transformer, name) * linear.out_features
        for name, linear in linears_of(transformer).items()
        if named.fullmatch(name)
    )


def _trainable(model: EditModel, transformer: torch.nn.Module, params: RequestParams, settings: RunSettings) -> int:
    if not params.use_lora:
        return sum(parameter.numel() for parameter in transformer.parameters())
    targets = re.compile(model.family.lora_targets(settings.lora_targets, transformer))
    return params.lora_rank * sum(
        sum(linear.weight.shape) for name, linear in linears_of(transformer).items() if targets.fullmatch(name)
    )
