"""Components of a model that stay loaded from one edit to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import torch

from ..config.settings import parse_settings
from ..device import query_device
from ..errors import BadInput
from ..lora.adapter import lora_notes, source_state
from ..models.captions import CaptionRules
from .model_parts import ModelComponents
from .planner import inference_plan
from .weight_bytes import weight_bytes

if TYPE_CHECKING:
    from ..models.edit_model import EditModel

HOST_RESERVE = 2_000_000_000
"""Bytes of host memory that keeping components leaves free. A judgement: what the system and a host program need
beside them."""


class EditSession:
    """Keeps what one edit has loaded for the next: a base model's components, or nothing if `keeps` is false.

    Another base, or a file that has changed on the disk, takes the place of what was loaded; another LoRA is exchanged
    on the loaded transformer. Components that are kept share the device as far as they fit, and wait in host memory
    where it has room for them.
    """

    def __init__(self, keeps: bool = True) -> None:
        self._keeps = keeps
        self._components: ModelComponents | None = None
        self._base: object = None
        """Identity of the loaded base: the model without its LoRA, the device, the state of the files."""
        self._controls = 0
        """Control images that there is room for."""
        self._transformer_bytes = 0
        self._rules: CaptionRules | None = None
        self._notes: tuple[object, list[str]] = (None, [])

    @contextmanager
    def editing(self, model: EditModel, device: torch.device) -> Iterator[None]:
        """Context of one edit. What cannot be used for it is released at its start, and at its end everything if it
        failed in the middle; an edit that was refused or closed leaves the components usable."""
        base = _identity(model, device)
        if base != self._base:
            self.release()
            self._base = base
        try:
            yield
        except (BadInput, GeneratorExit):
            raise
        except BaseException:  # Out of memory or a cancel may leave a component half on the device.
            self.release()
            raise

    def rules(self, model: EditModel) -> CaptionRules:
        """Return the model's rules for captions, with its tokenizers loaded once."""
        if self._rules is None:
            self._rules = CaptionRules(model)
        return self._rules

    def notes(self, model: EditModel) -> list[str]:
        """Return the notes on the model's LoRA, whose header is read once. Raises BadInput for an unreadable file."""
        if model.adapter is None:
            return []
        state = source_state(model.adapter)
        if state != self._notes[0] or not isinstance(state, tuple):
            self._notes = state, lora_notes(model.adapter)
        return self._notes[1]

    def components(self, model: EditModel, device: torch.device, controls: int) -> ModelComponents:
        """Return the model's components with its LoRA, those that are loaded where they are there, with room for that
        many control images."""
        components = self._components
        if components is not None and (controls <= self._controls or device.type == "cpu"):
            components.exchange_adapter(model)
            return components
        self._free()
        plan = inference_plan(model, parse_settings({}), query_device(device), controls)
        if self._keeps:
            plan = replace(plan, offload="auto")
            self._transformer_bytes = weight_bytes(model, model.empty_transformer(), plan.precision, plan.dtype).total
        self._components = ModelComponents(model, device, plan)
        self._controls = controls
        return self._components

    def rest(self, name: str) -> None:
        """Note that the edit no longer needs a component. It is freed unless the session keeps it and host memory has
        room for all that may have to move there."""
        components = self._components
        if components is not None and not (self._keeps and self._has_room(components)):
            components.drop(name)

    def adopt(self, model: EditModel, components: ModelComponents) -> None:
        """Keep the components of a training whose transformer is the plain base again, if an edit would compute with
        the same precision; else they are left to their owner."""
        self.release()
        plan, device = components.plan, components.device
        info = query_device(device)
        wanted = inference_plan(model, parse_settings({}), replace(info, free=info.free + components.own_bytes))
        if plan.autocast or any(
            getattr(plan, name) != getattr(wanted, name) for name in ("precision", "dtype", "quantize_activations")
        ):
            return
        components.plan = replace(plan, offload="auto")
        self._base, self._components = _identity(model, device), components
        self._controls = 1

    @property
    def device_bytes(self) -> int:
        """Bytes of the kept components on the device."""
        return 0 if self._components is None else self._components.own_bytes

    def to_host(self) -> None:
        """Move the kept components off the device: to host memory, or nowhere if that has no room."""
        components = self._components
        if components is None or components.device.type == "cpu":
            return
        if self._has_room(components):
            components.to_host()
        else:
            components.drop_own()

    def release(self) -> None:
        """Free everything that is kept."""
        self._free()
        self._base, self._rules, self._notes = None, None, (None, [])

    def _free(self) -> None:
        components, self._components = self._components, None
        if components is not None:
            components.drop_own()

    def _has_room(self, components: ModelComponents) -> bool:
        """Tell whether host memory has room for what lies on the device, and for a transformer that is still to be
        loaded."""
        moved = 0 if components.device.type == "cpu" else components.own_bytes
        coming = 0 if components.is_loaded("transformer") else self._transformer_bytes
        return has_host_room(moved + coming)


def has_host_room(size: int) -> bool:
    """Tell whether host memory has room for that many bytes more, and a reserve."""
    return size + HOST_RESERVE <= psutil.virtual_memory().available


def _identity(model: EditModel, device: torch.device) -> object:
    bare = replace(model, adapter=None, adapter_strength=1.0, longest_caption=0, kept=None)
    return bare, device, model.file_states()
