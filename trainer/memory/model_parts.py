"""Components of a model, transformer, text encoder and VAE: loading them, and moving them on and off the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..device import allocated_memory, free_memory, release_cached_memory
from ..errors import BadInput
from ..events import Notice
from ..lora.adapter import load_lora, set_strength, source_state, unload_lora
from ..models.diffusers_family import PipelineCodec, PipelineTextEncoder
from ..quantization.benchmark import compute_capability
from ..quantization.linear import set_quantize_activations
from .codec_bytes import codec_bytes
from .hosted_weights import HostedWeights
from .pinned import PAGE_LOCKS
from .placement import Placement
from .plan import Plan
from .streamed_module import StreamedModule, repeated_layers

if TYPE_CHECKING:
    from ..models.edit_model import EditModel
    from ..models.types import TextConditioning


TEXT_WORK_BYTES = 1_000_000_000
"""Device memory for a text encoder's activations. Qwen2.5-VL with an image of 1 megapixel, the largest, saves 29 hidden
states of 1500 x 3584 values in bf16 (0.31 GB) and computes with three of 1500 x 18944 (0.17 GB); doubled."""


TILES = (
    "The GPU's memory does not hold what the VAE needs for whole images of this size, so it works in tiles, blended "
    "where they meet. The result differs slightly from that of whole images."
)


CODEC_PIXELS = 2**20
"""Pixels of the images that the VAE is expected to take where nothing else is said: the full models' resolution."""


class ModelComponents:
    """Loads the components of a model when they are first used, and shares the device among them.

    With offload `phases` the component in use moves the others to host memory; with `none` they stay; with `auto` they
    stay where the component in use fits beside them, at its peak: the transformer as planned, text encoder and VAE with
    what they compute with.
    """

    def __init__(self, model: EditModel, device: torch.device, plan: Plan) -> None:
        self.model = model
        self.device = device
        self.plan = plan
        self.dtype = plan.dtype
        self._loaded: dict[str, Any] = {}
        self._on_device: set[str] = set()
        self._in_use: tuple[str, int] | None = None
        """Name of the component that room was made for last, and the bytes that it computes with."""
        self._adapter: object = None
        """State of the LoRA on the loaded transformer, as `source_state` returns it; None for no LoRA."""
        self._said_tiles = False
        self._text_width: int | None = None
        self._allocated_before = allocated_memory(device)

    def transformer(self) -> torch.nn.Module:
        """Return the transformer, placed by the plan."""
        return self.placement().transformer

    def placement(self) -> Placement:
        """Return the transformer's placement, on the device."""
        return self._get("transformer", self._load_transformer)

    def autocast(self) -> torch.autocast:
        """Return the context of the transformer's forward passes: autocast where the plan has mixed precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.plan.autocast)

    def text_encoder(self) -> Any:
        """Return the TextEncoder, on the device."""
        return self._get("text_encoder", self._load_text_encoder, TEXT_WORK_BYTES)

    def check_text(self, text: TextConditioning) -> None:
        """Raise BadInput for a conditioning, `[1, ...]` of any dtype, that has not the channels that the transformer
        takes. The transformer's file is read for that once at most, and not where it is loaded."""
        width = self._text_width
        if width is None:
            loaded = self._loaded.get("transformer")
            config = self.model.transformer_config() if loaded is None else loaded.transformer.config
            width = self._text_width = config["joint_attention_dim"]
        given = text["prompt_embeds"].shape[-1]
        if given != width:
            loader = f": {self.model.family.info.comfyui.clip_loader}" if self.model.ports else ""
            raise BadInput(
                f"The text encoder gives {given} channels and the transformer of {self.model.base_model} takes "
                f"{width}, so one of the two belongs to another model. Choose the text encoder of this "
                f"transformer{loader}."
            )

    def codec(self, pixels: int = CODEC_PIXELS) -> Any:
        """Return the ImageCodec, on the device, with room for images of that many pixels in all; it works in tiles if
        there is not that much."""
        work = 0 if self.device.type == "cpu" else codec_bytes(self.model.family, self.dtype, pixels)
        codec = self._get("codec", self._load_codec, work)
        if isinstance(codec, PipelineCodec) and work:
            codec.use_tiles(work > free_memory(self.device))
        return codec

    @property
    def waiting_bytes(self) -> int:
        """Bytes of text encoder and VAE in host memory, where they wait or are streamed from."""
        waiting = 0
        for name, part in self._loaded.items():
            module, streamed = getattr(part, "module", None), isinstance(getattr(part, "mover", None), StreamedModule)
            if module is not None and (streamed or name not in self._on_device):
                waiting += _module_bytes(module)
        return waiting

    def notices(self) -> Iterator[Notice]:
        """Yield what the user should know about the memory of the run, each thing once."""
        codec = self._loaded.get("codec")
        if isinstance(codec, PipelineCodec) and codec.has_tiled and not self._said_tiles:
            self._said_tiles = True
            yield Notice(message=TILES)
        if short := PAGE_LOCKS.take_notice():
            yield Notice(message=short)

    @property
    def own_bytes(self) -> int:
        """Bytes of the components on the device, without those of a host program."""
        return sum(self._bytes(name) for name in self._on_device if self._is_own(name))

    def is_loaded(self, name: str) -> bool:
        """Tell whether a component is loaded, on the device or in host memory."""
        return name in self._loaded

    def exchange_adapter(self, model: EditModel) -> None:
        """Go on with a model that differs in its LoRA alone: a loaded transformer gets that LoRA, or its strength.

        Raises BadInput if it is not a LoRA of this transformer, which then has none.
        """
        before, self.model = self.model, model
        if "transformer" not in self._loaded:
            return
        transformer, state = self._loaded["transformer"].transformer, source_state(model.adapter)
        if state == self._adapter:
            if state is not None and model.adapter_strength != before.adapter_strength:
                set_strength(transformer, model.adapter_strength)
            return
        if self._adapter is not None:
            unload_lora(transformer)
            self._adapter = None
        self._add_adapter(transformer)
        if "transformer" in self._on_device:
            self._loaded["transformer"].to(self.device)

    def to_host(self) -> None:
        """Move the components to host memory, except those of a host program."""
        own = {name for name in self._on_device if self._is_own(name)}
        for name in own:
            self._loaded[name].to("cpu")
        self._on_device -= own
        self._in_use = None
        release_cached_memory(self.device)

    def drop_own(self) -> None:
        """Free all components, except those of a host program; each is loaded again at its next use."""
        for name in [name for name in self._loaded if self._is_own(name)]:
            self.drop(name)

    def _is_own(self, name: str) -> bool:
        return name == "transformer" or self.model.ports is None

    def drop(self, name: str) -> None:
        """Free a component; it is loaded again at its next use."""
        self._on_device.discard(name)
        self._in_use = None
        part = self._loaded.pop(name, None)
        if part is None:
            return
        if not self._is_own(name):
            part.to("cpu")  # ComfyUI keeps it.
        del part
        release_cached_memory(self.device)

    def _load_text_encoder(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Load the text encoder; its layers are streamed if the plan says so, or the device cannot hold it alone."""
        encoder = self.model.load_text_encoder(device, dtype)
        if not isinstance(encoder, PipelineTextEncoder) or self.device.type == "cpu" or self.plan.offload == "none":
            return encoder
        most = free_memory(self.device) + sum(map(self._bytes, self._on_device))
        is_too_large = _module_bytes(encoder.module) + TEXT_WORK_BYTES > most
        if (is_too_large or self.plan.stream_text_encoder) and repeated_layers(encoder.module):
            encoder.mover = StreamedModule(encoder.module, self.device)
        return encoder

    def _load_codec(self, device: torch.device, dtype: torch.dtype) -> Any:
        codec = self.model.load_codec(device, dtype)
        if isinstance(codec, PipelineCodec):
            codec.make_room = partial(self._send_others_away, "codec")
        return codec

    def _load_transformer(self, device: torch.device, dtype: torch.dtype) -> Placement:
        hosted = HostedWeights(self.model.family, self.plan, self.device)
        transformer = self.model.load_transformer(device, dtype, self.plan.precision, hosted)
        self._adapter = None
        self._add_adapter(transformer)
        set_quantize_activations(transformer, self.plan.quantize_activations, compute_capability(self.device))
        return Placement(transformer, self.model.family, self.plan, self.device, hosted)

    def _add_adapter(self, transformer: torch.nn.Module) -> None:
        """Load the model's LoRA into a transformer that has none."""
        if self.model.adapter is None:
            return
        state = source_state(self.model.adapter)  # before it is read: a file that is written meanwhile is read again
        load_lora(transformer, self.model.family, self.model.adapter, self.model.adapter_strength)
        self._adapter = state

    def _get(self, name: str, load: Callable[[torch.device, torch.dtype], Any], work: int = 0) -> Any:
        if self._in_use == (name, work):
            return self._loaded[name]
        if name not in self._loaded:
            if name == "transformer":
                self._make_room(name, work)  # Its weights go to the device one by one.
            self._loaded[name] = load(torch.device("cpu"), self.dtype)
        self._make_room(name, work)
        if name not in self._on_device:
            self._loaded[name].to(self.device)
            self._on_device.add(name)
        self._in_use = name, work
        return self._loaded[name]

    def _make_room(self, name: str, work: int) -> None:
        others = self._on_device - {name}
        if self.device.type == "cpu" or not others:
            return
        if self.plan.offload != "auto" or not self._fits_beside(name, work, others):
            self._send_others_away(name)

    def _send_others_away(self, name: str) -> bool:
        """Move the other components to the host unless offload is `none`; returns False if there is nothing to move."""
        others = self._on_device - {name}
        if self.plan.offload == "none" or not others:
            return False
        for other in others:
            self._loaded[other].to("cpu")
        self._on_device -= others
        release_cached_memory(self.device)
        return True

    def _fits_beside(self, name: str, work: int, others: Collection[str]) -> bool:
        """Tell whether a component fits with all that it needs while `others` stay."""
        if name == "transformer":
            allocated = allocated_memory(self.device) - self._allocated_before
            needed = self.plan.bytes + sum(map(self._bytes, others))
            return self.plan.bytes > 0 and needed <= free_memory(self.device) + allocated
        missing = 0 if name in self._on_device else self._bytes(name)
        return missing + work <= free_memory(self.device)

    def _bytes(self, name: str) -> int:
        part = self._loaded[name]
        mover = getattr(part, "mover", None)
        if isinstance(part, Placement):
            return part.device_bytes
        if isinstance(mover, StreamedModule):
            return mover.device_bytes
        module = getattr(part, "module", None)  # neither TextEncoder nor ImageCodec need have one
        return 0 if module is None else _module_bytes(module)


def _module_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
