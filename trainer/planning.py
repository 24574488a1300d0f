"""Which plan suits a request, a model and a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .card import Card
from .errors import BadInput
from .footprint import Footprint, measure, step_shape
from .models.quantize import QUANTIZED
from .plan import KEPT, Plan, Precision, Recompute
from .schema import TrainingParams
from .settings import RunSettings
from .weight_bytes import weight_bytes

if TYPE_CHECKING:
    from .models.sources import EditModel

TRAINED_BYTES = {"adamw": 16, "adamw8bit": 10, "adafactor": 8}
"""For each weight of a LoRA: itself and its gradient in float32, and the optimizer's state."""
SMALL = 100_000_000
"""Bytes of weights. What smaller models need on the CPU is not worth the seconds that it takes to find out."""
DRAWING_WORK = 3_000_000_000
"""Bytes that a forward pass at 1024 x 1024 pixels takes beside the weights, with room."""
RESERVE = 500_000_000
"""Bytes for the driver's context and the allocator's gaps."""


def make_plan(model: EditModel, params: TrainingParams, settings: RunSettings, card: Card) -> Plan:
    """The fastest plan that fits the card: what costs little time is given up first.

    Raises BadInput for settings that contradict each other, and, but on the CPU, when nothing fits; the message then
    says what would.
    """
    _check(params, settings)
    plans = list(_plans(model, params, settings, card))
    for plan, fits in plans:
        if fits:
            return plan
    smallest = min((plan for plan, _ in plans), key=lambda plan: plan.bytes)
    if card.is_cpu:
        return smallest
    raise BadInput(_refusal(model, params, settings, card, smallest))


def _plans(model: EditModel, params: TrainingParams, settings: RunSettings, card: Card) -> Iterator[tuple[Plan, bool]]:
    """Every plan that the settings allow, the preferred ones first, and whether it fits."""
    for precision in precisions(settings, card):
        needs = Needs(model, params, settings, card, precision)
        for plan in needs.plans():
            yield plan, plan.bytes <= card.free and needs.host_bytes(plan) <= card.host


def _refusal(model: EditModel, params: TrainingParams, settings: RunSettings, card: Card, smallest: Plan) -> str:
    changes: dict[str, tuple[dict[str, object], dict[str, object]]] = {
        'offload "auto"': ({}, {"offload": "auto"}),
        'gradient_checkpointing "auto"': ({}, {"gradient_checkpointing": "auto"}),
        'precision "int8"': ({}, {"precision": "int8"}),
        'precision "nf4"': ({}, {"precision": "nf4"}),
        "batch_size 1": ({"batch_size": 1}, {}),
        "resolution 768": ({}, {"resolution": 768}),
        "resolution 512": ({}, {"resolution": 512}),
        "use_lora true": ({"use_lora": True}, {}),
    }

    def fits(*names: str) -> bool:
        others = [changes[name] for name in names]
        new = params.model_copy(update={key: value for change, _ in others for key, value in change.items()})
        how = settings.model_copy(update={key: value for _, change in others for key, value in change.items()})
        try:
            _check(new, how)
        except BadInput:
            return False
        return any(fit for _, fit in _plans(model, new, how, card))

    resolution = settings.resolution or model.family.scale.resolution
    possible = [name for name in changes if not (name.startswith("resolution") and int(name.split()[1]) >= resolution)]
    helpful = [name for name in possible if fits(name)]
    together = ('precision "nf4"', "batch_size 1", "resolution 512", 'offload "auto"', 'gradient_checkpointing "auto"')
    if helpful:
        advice = "It fits with " + ", or ".join(helpful) + "."
    elif fits(*together):
        advice = "It fits with " + ", ".join(together) + " together."
    else:
        advice = "No setting makes it fit."
    return (
        f"The training does not fit: with what these settings allow it takes at least {smallest.bytes / 1e9:.1f} GB of "
        f"the card's memory ({smallest.sum_line()}), and {card.free / 1e9:.1f} GB are free; "
        f"{card.host / 1e9:.0f} GB of host memory are. {advice}"
    )


def precisions(settings: RunSettings, card: Card) -> list[Precision]:
    """How the frozen base may be held, the preferred way first."""
    if settings.precision != "auto":
        return [settings.precision]
    if not card.bf16:
        return ["fp32"]
    return ["int8"] if "int8" in card.fast_codes else ["bf16", "int8"]


def computation_dtype(precision: Precision, card: Card) -> torch.dtype:
    """Number format of computations, and of weights that are not quantized."""
    if precision in QUANTIZED:
        return torch.bfloat16 if card.bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def full_fine_tune_bytes(optimizer: str, dtype: torch.dtype = torch.bfloat16) -> int:
    """For each weight when all are trained: itself, its gradient, and the optimizer's state. With adafactor the first
    two are in the computation's `dtype`."""
    return 2 * dtype.itemsize if optimizer == "adafactor" else TRAINED_BYTES[optimizer]


def _check(params: TrainingParams, settings: RunSettings) -> None:
    faults = []
    if settings.offload == "blocks" and settings.gradient_checkpointing in ("off", "selective"):
        faults.append('offload "blocks" computes every block again: set gradient_checkpointing to auto or on')
    if settings.offload in ("modulation", "blocks") and not params.use_lora:
        faults.append(f'offload "{settings.offload}" keeps frozen weights away; with use_lora false none is frozen')
    if settings.offload == "modulation" and settings.lora_targets == "all-linear":
        faults.append('offload "modulation" keeps the modulation frozen; lora_targets "all-linear" trains it')
    if not params.use_lora and settings.precision in QUANTIZED:
        faults.append(f'precision "{settings.precision}" is for a frozen base; with use_lora false all is trained')
    if faults:
        raise BadInput("\n".join(f"{fault}." for fault in faults))


class Needs:
    """What one request needs of a card with the base in one precision, plan by plan."""

    def __init__(
        self, model: EditModel, params: TrainingParams, settings: RunSettings, card: Card, precision: Precision
    ) -> None:
        self.params, self.settings, self.card, self.precision = params, settings, card, precision
        self.dtype = computation_dtype(precision, card)
        transformer = model.empty_transformer()
        self.trainable = _trainable(model, transformer, params, settings)
        self.weights = weight_bytes(model, transformer, precision, self.dtype)
        self._measured: dict[Recompute, Footprint] = {}
        self.model, self.shape = model, step_shape(model.family, params, settings, self._plan())

    def _footprint(self, recompute: Recompute) -> Footprint:
        if recompute not in self._measured:
            self._measured[recompute] = measure(self.model, self.shape, self.params, self.settings, recompute)
        return self._measured[recompute]

    def plans(self) -> Iterator[Plan]:
        """The plans that the settings allow, from the fastest to the smallest."""
        for plan in self._levers():
            yield replace(plan, expected=self.expected(plan))

    def _levers(self) -> Iterator[Plan]:
        settings, blocks = self.settings, len(self.weights.blocks)
        plan = self._plan()
        # Trained or asked for on the device, it stays there; elsewhere it costs nothing to let it go.
        host = settings.offload in ("auto", "modulation", "blocks") and not self.card.is_cpu
        host = (host or settings.offload in ("modulation", "blocks")) and self._modulation_is_frozen
        if settings.offload == "blocks":
            yield self._streaming(replace(plan, modulation_on_host=host), blocks, blocks)
            return
        modes = self._recomputing(blocks)
        if not (host and settings.offload == "modulation"):
            yield replace(plan, recompute=next(iter(modes)))
        kept = replace(plan, modulation_on_host=host)
        for recompute in modes:
            yield replace(kept, recompute=recompute)
        if settings.offload != "auto" or self.card.is_cpu or not self.params.use_lora:
            return
        if settings.gradient_checkpointing not in ("auto", "on"):
            return
        for count in range(blocks + 1):
            yield self._streaming(kept, blocks, count)

    def _plan(self) -> Plan:
        """With everything on the device and nothing computed again."""
        return Plan(
            precision=self.precision,
            dtype=self.dtype,
            offload="phases" if self.settings.offload in ("modulation", "blocks") else self.settings.offload,
            integer_products=self.precision in self.card.fast_codes,
            compile=self.settings.compile == "on",
        )

    @property
    def _modulation_is_frozen(self) -> bool:
        return self.params.use_lora and self.settings.lora_targets != "all-linear"

    def _recomputing(self, blocks: int) -> list[tuple[Recompute, ...]]:
        """Ways to compute blocks again, the quickest first. The last blocks, which go backward first, keep the most."""
        wanted = self.settings.gradient_checkpointing
        if wanted != "auto":
            mode: Recompute = {"on": "full", "off": "none", "selective": "selective"}[wanted]
            return [(mode,) * blocks]
        ways: list[tuple[Recompute, ...]] = [("none",) * blocks]
        # Compiled attention cannot be told apart, and is computed again with the rest.
        cheap: Recompute = "full" if self.settings.compile == "on" else "selective"
        ways += [(cheap,) * count + ("none",) * (blocks - count) for count in range(1, blocks + 1)]
        if cheap == "selective":
            ways += [("full",) * count + ("selective",) * (blocks - count) for count in range(1, blocks + 1)]
        return ways

    def _streaming(self, plan: Plan, blocks: int, count: int) -> Plan:
        """All blocks computed again, their inputs in host memory, and `count` of them, evenly spread, streamed."""
        return replace(plan, recompute=("full",) * blocks, inputs_on_host=True, streamed=_spread(blocks, count))

    def expected(self, plan: Plan) -> dict[str, int]:
        """Bytes of device memory by what takes them."""
        weights = self.weights
        resident = weights.around + sum(size for index, size in enumerate(weights.blocks) if index not in plan.streamed)
        modulation = 0 if plan.modulation_on_host else sum(weights.modulation)
        streamed = [weights.blocks[index] for index in plan.streamed]
        if not self.params.use_lora:
            resident, modulation = 0, 0
        optimizer = self.settings.optimizer
        each = TRAINED_BYTES[optimizer] if self.params.use_lora else full_fine_tune_bytes(optimizer, self.dtype)
        kept, work = self._activations(plan)
        parts = {
            "frozen weights": resident + modulation,
            "two blocks that come and go": 2 * max(streamed, default=0),
            "trained weights, gradients, optimizer": self.trainable * each,
            KEPT: kept,
            "work of the largest block": work,
            "driver and gaps": 0 if self.card.is_cpu else RESERVE,
        }
        return {name: size for name, size in parts.items() if size}

    def host_bytes(self, plan: Plan) -> int:
        """Bytes of host memory that the plan keeps busy while it trains; on the CPU they are the device's."""
        if self.card.is_cpu:
            return 0
        modulation = sum(self.weights.modulation) if plan.modulation_on_host else 0
        inputs = 0
        if plan.inputs_on_host:
            inputs = sum(self._footprint("full").blocks[kind].kept for kind in self.weights.block_kinds)
        streamed = sum(self.weights.blocks[index] for index in plan.streamed)
        return modulation + streamed + inputs

    def _activations(self, plan: Plan) -> tuple[int, int]:
        """What is kept, and what the block needs whose backward pass comes at the peak."""
        if self.card.is_cpu and self.weights.total < SMALL:
            return 0, 0
        kept, peak, at_peak = self._footprint(plan.recompute_of(0)).around, 0, (0, 0)
        for index, kind in enumerate(self.weights.block_kinds):
            mode = plan.recompute_of(index)
            block = self._footprint(mode).blocks[kind]
            if kept + block.work > peak:
                peak, at_peak = kept + block.work, (kept, block.work)
            if not (plan.inputs_on_host and mode == "full"):
                kept += block.kept
        return at_peak


def _spread(blocks: int, count: int) -> frozenset[int]:
    """`count` of the blocks, evenly spread, so that the others hide their coming."""
    return frozenset(index * blocks // count for index in range(count))


def _trainable(model: EditModel, transformer: torch.nn.Module, params: TrainingParams, settings: RunSettings) -> int:
    if not params.use_lora:
        return sum(parameter.numel() for parameter in transformer.parameters())
    targets = re.compile(model.family.lora_targets(settings.lora_targets, transformer))
    return sum(
        params.lora_rank * sum(module.weight.shape)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and targets.fullmatch(name)
    )


def drawing_plan(model: EditModel, settings: RunSettings, card: Card) -> Plan:
    """The plan of drawing alone: the first precision whose weights fit, else as few blocks streamed as must be."""
    offered = precisions(settings, card)
    for precision in offered:
        dtype = computation_dtype(precision, card)
        weights = weight_bytes(model, model.empty_transformer(), precision, dtype)
        plan = Plan(precision=precision, dtype=dtype, offload="phases", integer_products=precision in card.fast_codes)
        if card.is_cpu or weights.total + DRAWING_WORK <= card.free:
            return plan
        resident = weights.around + sum(weights.blocks)
        plan = replace(plan, modulation_on_host=True)
        if resident + DRAWING_WORK <= card.free:
            return plan
    slots, count = 2 * max(weights.blocks), len(weights.blocks)
    missing = resident + slots + DRAWING_WORK - card.free
    streamed = min(count, -(-missing // min(weights.blocks)))
    return replace(plan, streamed=_spread(count, streamed))
