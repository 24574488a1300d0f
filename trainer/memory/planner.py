"""The planner: chooses the plan that suits a request, a model and a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..config.request import RequestParams
from ..config.settings import Precision, RunSettings, caches_texts
from ..device import DeviceInfo
from ..distributed.processes import SingleProcess
from ..errors import BadInput
from ..quantization.formats import format_of
from .estimate import MemoryEstimate, computation_dtype, quantizes_activations, spread_blocks
from .phases import Phases
from .plan import ACTIVATIONS, FROZEN, SLOTS, PhaseMemory, Plan
from .weight_bytes import weight_bytes

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


DRAWING_BYTES = 3_000_000_000
"""Bytes allowed for the activations of inference at 1024 x 1024 with one control image. A judgement, generous; not
measured on a GPU."""


def make_plan(model: EditModel, params: RequestParams, settings: RunSettings, device_info: DeviceInfo) -> Plan:
    """Choose the fastest plan that fits the device: what costs least time is given up first.

    Raises BadInput for settings that contradict each other and, except on the CPU, when nothing fits; the message then
    says what would.
    """
    _check(params, settings)
    smallest = None
    for plan, fits in _plans(model, params, settings, device_info):
        if fits:
            return plan
        if smallest is None or _missing(plan, device_info) < _missing(smallest, device_info):
            smallest = plan
    assert smallest is not None
    if device_info.is_cpu:
        return smallest
    raise BadInput(_refusal(model, params, settings, device_info, smallest))


def _plans(
    model: EditModel,
    params: RequestParams,
    settings: RunSettings,
    device_info: DeviceInfo,
    skip_hopeless: bool = False,
) -> Iterator[tuple[Plan, bool]]:
    """Yield the plans that the settings allow, in order of preference, each with whether all of its phases fit.

    Phases are counted only where the training itself fits, and not on the CPU, which has one memory. `skip_hopeless`
    leaves out precisions whose weights alone do not fit, so that nothing is measured for them.
    """
    for precision in precisions(settings, device_info):
        needs = MemoryEstimate(model, params, settings, device_info, precision)
        if skip_hopeless and needs.least > device_info.free:
            continue
        phases = Phases(needs)
        for plan in needs.plans():
            fits = plan.bytes <= device_info.free and needs.host_bytes(plan) <= device_info.host
            if fits and not device_info.is_cpu:
                plan = replace(plan, phases=phases.of(plan))
                if _too_large(plan, device_info) and not caches_texts(params, settings):
                    plan = replace(plan, stream_text_encoder=True)
                    plan = replace(plan, phases=phases.of(plan))
                fits = not _too_large(plan, device_info)
            yield plan, fits


def _too_large(plan: Plan, device_info: DeviceInfo) -> list[PhaseMemory]:
    return [phase for phase in plan.phases if phase.device > device_info.free or phase.host > device_info.host]


def _missing(plan: Plan, device_info: DeviceInfo) -> tuple[int, int]:
    """Measure how far a plan is from fitting: first whether the training fits, then the missing bytes."""
    phases = [max(phase.device - device_info.free, 0) + max(phase.host - device_info.host, 0) for phase in plan.phases]
    return (0, max(phases)) if phases else (1, plan.bytes)


def _refusal(
    model: EditModel, params: RequestParams, settings: RunSettings, device_info: DeviceInfo, smallest: Plan
) -> str:
    """Say what does not fit, and what would make it fit."""
    free = f"{device_info.free / 1e9:.1f} GB are free, besides {device_info.host / 1e9:.0f} GB of host memory"
    if too_large := _too_large(smallest, device_info):
        phases = ", and ".join(
            f"{phase.name} takes {phase.device / 1e9:.1f} GB of device and {phase.host / 1e9:.1f} GB of host memory"
            for phase in too_large
        )
        fault = f"with these settings, {phases}; {free}."
    else:
        fault = (
            f"with these settings it takes at least {smallest.bytes / 1e9:.1f} GB of device memory "
            f"({smallest.sum_line()}), and {free}."
        )
    advice = _advice(model, params, settings, device_info)
    if advice is None and any(phase.name == "encoding texts" for phase in too_large) and model.ports is None:
        advice = "A smaller text encoder helps: give one in fp8 as a file."
    return f"The training does not fit: {fault} {advice or 'No setting makes it fit.'}"


def _advice(model: EditModel, params: RequestParams, settings: RunSettings, device_info: DeviceInfo) -> str | None:
    """Name the changes of the request and the settings that make it fit, each alone or some together; None: none do."""
    changes: dict[str, tuple[dict[str, object], dict[str, object]]] = {
        'offload "auto"': ({}, {"offload": "auto"}),
        'gradient_checkpointing "auto"': ({}, {"gradient_checkpointing": "auto"}),
        "cache_text_embeddings true": ({}, {"cache_text_embeddings": True}),
        'precision "int8"': ({}, {"precision": "int8"}),
        'precision "nf4"': ({}, {"precision": "nf4"}),
        "batch_size 1": ({"batch_size": 1}, {}),
        "resolution 768": ({}, {"resolution": 768}),
        "resolution 512": ({}, {"resolution": 512}),
        "sample_width and sample_height 512": ({"sample_width": 512, "sample_height": 512}, {}),
        "use_lora true": ({"use_lora": True}, {}),
    }

    def fits(*names: str) -> bool:
        others = [changes[name] for name in names]
        new = params.model_copy(update={key: value for change, _ in others for key, value in change.items()})
        how = settings.model_copy(update={key: value for _, change in others for key, value in change.items()})
        if (new, how) == (params, settings):
            return False
        try:
            _check(new, how)
        except BadInput:
            return False
        return any(fit for _, fit in _plans(model, new, how, device_info, skip_hopeless=True))

    resolution = settings.resolution or model.family.variant.resolution
    possible = [name for name in changes if not (name.startswith("resolution") and int(name.split()[1]) >= resolution)]
    if helpful := [name for name in possible if fits(name)]:
        return "It fits with " + ", or ".join(helpful) + "."
    together = (
        "cache_text_embeddings true",
        'precision "nf4"',
        "batch_size 1",
        "resolution 512",
        'offload "auto"',
        'gradient_checkpointing "auto"',
    )
    return "It fits with " + ", ".join(together) + " together." if fits(*together) else None


def precisions(settings: RunSettings, device_info: DeviceInfo) -> list[Precision]:
    """List the precisions to try for the frozen base, in order of preference."""
    if settings.precision != "auto":
        return [settings.precision]
    if device_info.is_cpu:
        return ["fp32"]
    if "int8" in device_info.preferred_precisions and settings.quantize_activations != "off":
        return ["int8"]
    return ["bf16" if device_info.bf16 else "fp32", "int8"]


def _check(params: RequestParams, settings: RunSettings) -> None:
    faults = []
    if settings.offload == "blocks" and settings.gradient_checkpointing in ("off", "selective"):
        faults.append('offload "blocks" recomputes every block: set gradient_checkpointing to auto or on')
    if settings.offload in ("modulation", "blocks") and not params.use_lora:
        faults.append(
            f'offload "{settings.offload}" moves frozen weights to host memory; with use_lora false none are frozen'
        )
    if settings.offload == "modulation" and settings.lora_targets == "all-linear":
        faults.append('offload "modulation" needs the modulation frozen; lora_targets "all-linear" trains it')
    if not params.use_lora and settings.precision != "auto" and format_of(settings.precision):
        faults.append(
            f'precision "{settings.precision}" is for a frozen base; with use_lora false all weights are trained'
        )
    if faults:
        raise BadInput("\n".join(f"{fault}." for fault in faults))


def inference_plan(model: EditModel, settings: RunSettings, device_info: DeviceInfo, controls: int = 1) -> Plan:
    """Choose the plan for inference with this number of control images: the first precision whose weights fit, else as
    few streamed blocks as possible."""
    offered = precisions(settings, device_info)
    drawing = DRAWING_BYTES * (1 + max(1, controls)) // 2
    for precision in offered:
        dtype = computation_dtype(precision, device_info)
        weights = weight_bytes(model, model.empty_transformer(), precision, dtype)
        plan = Plan(
            precision=precision,
            dtype=dtype,
            offload="phases",
            quantize_activations=quantizes_activations(precision, settings, device_info),
            expected={FROZEN: weights.total, ACTIVATIONS: drawing},
        )
        if device_info.is_cpu or plan.bytes <= device_info.free:
            return plan
        resident = weights.around + sum(weights.blocks)
        plan = replace(plan, modulation_on_host=True, expected={FROZEN: resident, ACTIVATIONS: drawing})
        if plan.bytes <= device_info.free:
            return plan
    slots, count = 2 * max(weights.blocks), len(weights.blocks)
    missing = plan.bytes + slots - device_info.free
    streamed = min(count, -(-missing // min(weights.blocks)))
    chosen = spread_blocks(count, streamed)
    left = resident - sum(weights.blocks[index] for index in chosen)
    return replace(plan, streamed=chosen, expected={FROZEN: left, SLOTS: slots, ACTIVATIONS: drawing})


def joint_plan(
    model: EditModel, params: RequestParams, settings: RunSettings, processes: SingleProcess, device: torch.device
) -> Plan:
    """Return one plan for all processes, made for the least of their devices. Raises BadInput as `make_plan` does.

    Several processes shard a full fine-tune's weights, and a frozen base that each could hold only by streaming it but
    all together can hold, where its weights are not quantized.
    """
    sharded = processes.world_size > 1 and not params.use_lora
    plan = make_plan(model, params, settings, processes.query_device(device, sharded))
    if sharded:
        return replace(plan, sharded=True, phases=())
    if processes.world_size == 1 or format_of(plan.precision) or not plan.streamed or settings.offload != "auto":
        return plan
    resident = settings.model_copy(update={"offload": "phases"})
    try:
        plan = make_plan(model, params, resident, processes.query_device(device, sharded=True))
    except BadInput:
        return plan
    return replace(plan, sharded=True, phases=())
