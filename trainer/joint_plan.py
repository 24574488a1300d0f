"""The plan that the processes of a run follow together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .distributed import Ranks
from .errors import BadInput
from .models.quantize import QUANTIZED
from .plan import Plan
from .planning import make_plan
from .schema import TrainingParams
from .settings import RunSettings

if TYPE_CHECKING:
    from .models.sources import EditModel


def joint_plan(
    model: EditModel, params: TrainingParams, settings: RunSettings, ranks: Ranks, device: torch.device
) -> Plan:
    """The plan for the least of the processes' cards. Raises BadInput as `make_plan` does.

    Several processes share a frozen base out (`ranks.sharded`) that each could hold only by streaming it, where its
    weights are plain numbers and together the cards hold it.
    """
    plan = make_plan(model, params, settings, ranks.card(device))
    if ranks.world == 1 or ranks.sharded or plan.precision in QUANTIZED:
        return plan
    if not plan.streamed or settings.offload != "auto":
        return plan
    ranks.sharded = True
    try:
        return make_plan(model, params, settings.model_copy(update={"offload": "phases"}), ranks.card(device))
    except BadInput:
        ranks.sharded = False
        return plan
