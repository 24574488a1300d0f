"""What is where: the number format of the base, and which of a model's parts are on the device at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..lora.adapter import load_lora
from ..quantization.linear import set_quantize_activations
from .placement import Placement
from .plan import Plan

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


HEADROOM_BYTES = 6 * 2**30
"""Device memory left for activations when all parts are kept on the device."""


class ModelComponents:
    """Loads the parts of a model when they are first used, and lets them take turns on the device.

    With offload `phases` a part that is asked for sends the others to host memory; with `none` they stay; `auto` lets
    them stay while the device's free memory allows.
    """

    def __init__(self, model: EditModel, device: torch.device, plan: Plan) -> None:
        self.model = model
        self.device = device
        self.plan = plan
        self.dtype = plan.dtype
        self._loaded: dict[str, Any] = {}
        self._on_device: set[str] = set()

    def transformer(self) -> torch.nn.Module:
        """The transformer, placed as the plan says."""
        return self.placement().transformer

    def placement(self) -> Placement:
        """What of the transformer is where."""
        return self._get("transformer", self._load_transformer)

    def text_encoder(self) -> Any:
        """The TextEncoder, on the device."""
        return self._get("text_encoder", self.model.load_text_encoder)

    def codec(self) -> Any:
        """The ImageCodec, on the device."""
        return self._get("codec", self.model.load_codec)

    def drop(self, name: str) -> None:
        """Let go of a part; it is loaded again when asked for."""
        self._on_device.discard(name)
        part = self._loaded.pop(name, None)
        if part is None:
            return
        if self.model.ports is not None and name != "transformer":
            part.to("cpu")  # Its host holds on to it.
        del part
        self._free_device_memory()

    def _load_transformer(self, device: torch.device, dtype: torch.dtype) -> Placement:
        transformer = self.model.load_transformer(device, dtype, self.plan.precision)
        if self.model.adapter is not None:
            load_lora(transformer, self.model.family, self.model.adapter, self.model.adapter_strength)
        set_quantize_activations(transformer, self.plan.quantize_activations)
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
