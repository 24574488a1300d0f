"""Which plan suits a request, a model and a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .models.blocks import blocks_of
from .plan import Plan, Precision, Recompute
from .settings import RunSettings

if TYPE_CHECKING:
    from .models.sources import EditModel

FULL_SIZE_PARAMETERS = 1_000_000_000
"""Models from this size on are trained with gradient checkpointing unless the settings say otherwise."""


def computation_dtype(settings: RunSettings, device: torch.device) -> torch.dtype:
    """Number format of computations: bf16 on a GPU that has it, float32 on the CPU, or as the settings say."""
    if settings.precision in ("fp32", "bf16"):
        return torch.float32 if settings.precision == "fp32" else torch.bfloat16
    if device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        return torch.float32
    return torch.bfloat16


def make_plan(model: EditModel, settings: RunSettings, device: torch.device) -> Plan:
    """The plan of a training."""
    dtype = computation_dtype(settings, device)
    precision: Precision = "fp32" if dtype == torch.float32 else "bf16"
    if settings.precision in ("int8", "fp8", "nf4"):
        precision = settings.precision
    transformer = model.empty_transformer()
    recompute: Recompute = "none"
    if settings.gradient_checkpointing in ("on", "selective"):
        recompute = "full" if settings.gradient_checkpointing == "on" else "selective"
    elif settings.gradient_checkpointing == "auto":
        large = sum(parameter.numel() for parameter in transformer.parameters()) >= FULL_SIZE_PARAMETERS
        recompute = "full" if large else "none"
    count = len(blocks_of(transformer))
    host = settings.offload in ("modulation", "blocks")
    return Plan(
        precision=precision,
        dtype=dtype,
        offload="phases" if host else settings.offload,
        modulation_on_host=host,
        streamed=frozenset(range(count)) if settings.offload == "blocks" else frozenset(),
        recompute=(recompute,) * count,
        inputs_on_host=settings.offload == "blocks",
        compile=settings.compile == "on",
    )
