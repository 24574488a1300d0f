"""Going on after the device ran out of memory: the run is planned again for less, from memory."""

from __future__ import annotations

import gc
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..device import release_cached_memory, usable_memory
from ..errors import BadInput, RunFailed
from ..events import Event, Notice, Planned
from ..memory.plan import Plan
from ..memory.planner import make_plan
from .optim import build_optimizer
from .setup import RunContext, resumed_settings
from .state import TrainState
from .trainable import Trainable, build_trainable

if TYPE_CHECKING:
    from ..device import DeviceInfo


RETRIES = 2
"""New plans of a run. A judgement: two give up a seventh of the memory; what that does not cure is another fault."""

SMALLER = 0.93
"""Share of the memory that a new plan may take. A judgement: what an allocator loses to fragments varies by about as
much between runs."""

OUT_OF_MEMORY = (
    "The device is out of memory. Lower batch_size (and raise gradient_accumulation instead), resolution or the sample "
    "size, set offload to blocks, or close other programs that use the device."
)


class MemoryRetry:
    """Plans a run again for less memory, a few times."""

    def __init__(self, context: RunContext, state: TrainState) -> None:
        self.context, self.state = context, state
        self._left = RETRIES
        self._memory = context.plan.bytes
        """Bytes of the device that a plan may take."""

    @property
    def is_possible(self) -> bool:
        """True between optimizer steps while retries are left. Several processes would have to fail together."""
        return self._left > 0 and self.state.consistent and self.context.processes.world_size == 1

    def plan_again(self) -> Generator[Event, None, None]:
        """Load the transformer anew, as a plan for less memory places it; trained weights and optimizer stay.

        Reloading is simpler than taking a placed transformer apart, and the system mostly has its file in memory.
        Raises RunFailed when no plan takes less.
        """
        if self._left == RETRIES:
            yield Notice(
                message=f"The device ran out of memory after step {self.state.step}. Nothing is lost: the training "
                "goes on from there with a plan for less memory."
            )
        self._left -= 1
        self.state.rebuild(self._build)
        yield Planned(line=self.context.plan.line())

    def _build(self) -> tuple[Trainable, torch.optim.Optimizer]:
        context = self.context
        components, params, settings = context.components, context.params, context.settings
        components.drop("transformer")
        gc.collect()  # checkpointed blocks and their transformer refer to each other
        release_cached_memory(components.device)
        components.plan = self._smaller_plan(context.processes.query_device(components.device))
        trainable = build_trainable(components, params, settings, writes=context.run.writes)
        return trainable, build_optimizer(trainable.parameters, settings, params.learning_rate)

    def _smaller_plan(self, device_info: DeviceInfo) -> Plan:
        context = self.context
        self._memory = int(SMALLER * min(self._memory, usable_memory(context.components.device)))
        settings = resumed_settings(context.run, context.settings)
        # The plan counts the parts that wait in host memory; these have theirs already.
        host = device_info.host + context.components.waiting_bytes
        try:
            return make_plan(
                context.components.model,
                context.params,
                settings,
                replace(device_info, free=self._memory, host=host),
            )
        except BadInput as error:
            raise RunFailed(f"{OUT_OF_MEMORY}\n{error}") from None
