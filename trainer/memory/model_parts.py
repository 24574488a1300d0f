"""Components of a model, transformer, text encoder and VAE: loading them, and moving them on and off the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..lora.adapter import load_lora
from ..quantization.benchmark import compute_capability
from ..quantization.linear import set_quantize_activations
from .placement import Placement
from .plan import Plan

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


HEADROOM_BYTES = 6 * 2**30
"""Device memory that offload `auto` leaves free for activations when all components stay on the device. A judgement."""


class ModelComponents:
    """Loads the components of a model when they are first used, and shares the device among them.

    With offload `phases` the component in use moves the others to host memory; with `none` they stay; with `auto` they
    stay while the device's free memory allows it.
    """

    def __init__(self, model: EditModel, device: torch.device, plan: Plan) -> None:
        self.model = model
        self.device = device
        self.plan = plan
        self.dtype = plan.dtype
        self._loaded: dict[str, Any] = {}
        self._on_device: set[str] = set()

    def transformer(self) -> torch.nn.Module:
        """Return the transformer, placed by the plan."""
        return self.placement().transformer

    def placement(self) -> Placement:
        """Return the transformer's placement, on the device."""
        return self._get("transformer", self._load_transformer)

    def text_encoder(self) -> Any:
        """Return the TextEncoder, on the device."""
        return self._get("text_encoder", self.model.load_text_encoder)

    def codec(self) -> Any:
        """Return the ImageCodec, on the device."""
        return self._get("codec", self.model.load_codec)

    def drop(self, name: str) -> None:
        """Free a component; it is loaded again at its next use."""
        self._on_device.discard(name)
        part = self._loaded.pop(name, None)
        if part is None:
            return
        if self.model.ports is not None and name != "transformer":
            part.to("cpu")  # ComfyUI keeps it.
        del part
        self._free_device_memory()

    def _load_transformer(self, device: torch.device, dtype: torch.dtype) -> Placement:
        transformer = self.model.load_transformer(device, dtype, self.plan.precision)
        if self.model.adapter is not None:
            load_lora(transformer, self.model.family, self.model.adapter, self.model.adapter_strength)
        set_quantize_activations(transformer, self.plan.quantize_activations, compute_capability(self.device))
        return Placement(transformer, self.model.family, self.plan, self.device)

    def _get(self, name: str, load: Callable[[torch.device, torch.dtype], Any]) -> Any:
        if name not in self._loaded:
            self._make_room(name)
            self._loaded[name] = load(torch.device("cpu"), self.dtype)
        if name not in self._on_device:
            self._make_room(name)
            self._loaded[name].to(self.device)
            self._on_device.add(name)
        return self._loaded[name]

    def _make_room(self, name: str) -> None:
        others = self._on_device - {name}
        if self.device.type == "cpu" or not others or self.plan.offload == "none":
            return
        if self.plan.offload == "auto" and self._free_bytes() > HEADROOM_BYTES + self._bytes(name):
            return
        for other in others:
            self._loaded[other].to("cpu")
        self._on_device -= others
        self._free_device_memory()

    def _bytes(self, name: str) -> int:
        part = self._loaded.get(name)
        if isinstance(part, Placement):
            return part.device_bytes
        module = part if isinstance(part, torch.nn.Module) else getattr(part, "module", None)
        return sum(p.numel() * p.element_size() for p in module.parameters()) if module is not None else 0

    def _free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def _free_device_memory(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()
