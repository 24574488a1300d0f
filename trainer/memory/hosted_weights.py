"""Weights of a transformer on their way from the file: to the device, or to the host buffers that a plan asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..modules import blocks_of, own_parameters
from .modulation import modulation_linears
from .pinned import PinnedTensors

if TYPE_CHECKING:
    from ..models.family import Family
    from .plan import Plan

CPU = torch.device("cpu")


class HostedWeights:
    """WeightSink that carries out a plan: weights go to the device one by one, and what the plan keeps in host memory
    to its buffer as soon as a streamed block or a modulation layer is whole.

    Host memory then never holds more than the buffers, one block and one tensor.
    """

    def __init__(self, family: Family, plan: Plan, device: torch.device) -> None:
        self.device = device
        self._family, self._plan = family, plan
        self._missing: dict[str, set[str]] = {}
        """Names of the modules of a group that are not loaded yet, shared by these modules."""
        self._names: dict[str, tuple[str, ...]] = {}
        """Names of all modules of its group by a module's name."""
        self._buffers: dict[int, PinnedTensors] = {}
        """Filled buffers by the tensors' identities."""
        self._transformer: nn.Module | None = None

    def begin(self, module: nn.Module) -> None:
        """Find out which submodules of a transformer stay in host memory."""
        self._transformer, plan = module, self._plan
        pattern = self._family.modulation_layers()
        modulation = set(modulation_linears(module, pattern)) if plan.modulation_on_host else set()
        for name in modulation:
            self._missing[name] = {name}
        blocks = blocks_of(module)
        place = {id(part): index for index in plan.streamed for part in blocks[index].modules()}
        groups: dict[int, set[str]] = {index: set() for index in plan.streamed}
        modules = dict(module.named_modules())
        for name, _ in own_parameters(module):
            index = place.get(id(modules[name]))
            if index is not None and name not in modulation:
                groups[index].add(name)
        for names in groups.values():
            self._missing |= dict.fromkeys(names, names)
        self._names = {name: tuple(names) for name, names in self._missing.items()}

    def device_of(self, name: str) -> torch.device:
        """Choose the device of a submodule's weights: the CPU for those that stay there, or that are sharded later."""
        return CPU if name in self._missing or self._plan.sharded else self.device

    def filled(self, name: str) -> None:
        """Move a block or a modulation layer to its buffer if `name` was the last of its submodules."""
        missing = self._missing.get(name)
        if missing is None:
            return
        missing.discard(name)
        if not missing:
            assert self._transformer is not None
            parts = [self._transformer.get_submodule(own) for own in self._names[name]]
            tensors = [tensor for part in parts for tensor in chain(part.parameters(False), part.buffers(False))]
            buffer = PinnedTensors(tensors)
            self._buffers |= dict.fromkeys(map(id, tensors), buffer)

    def buffer_of(self, tensors: Sequence[torch.Tensor]) -> PinnedTensors:
        """Return the buffer that tensors of a block or layer, any shape and dtype, were moved to, or a new one with
        them. It holds no others; tensors that came in since, such as an adapter's, are left out."""
        loaded = next((self._buffers[id(tensor)] for tensor in tensors if id(tensor) in self._buffers), None)
        return loaded or PinnedTensors(tensors)
