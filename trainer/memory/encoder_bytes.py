"""Bytes of a model's text encoders, counted without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..modules import own_parameters
from ..single_file.text_encoder import empty_encoder
from .streamed_module import repeated_layers

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


@dataclass(frozen=True, slots=True)
class EncoderBytes:
    """Bytes of the weights of all text encoders of a model."""

    around: int
    """Bytes outside the repeated layers, such as token embeddings."""
    layers: tuple[int, ...]
    """Bytes of each repeated layer."""

    @property
    def resident(self) -> int:
        """Bytes of all weights: on the device, or on the host where they wait or are streamed from."""
        return self.around + sum(self.layers)

    @property
    def streamed(self) -> int:
        """Bytes on the device while the layers are streamed through two slots."""
        return self.around + 2 * max(self.layers, default=0)


def encoder_bytes(model: EditModel, dtype: torch.dtype) -> EncoderBytes | None:
    """Count the bytes of a model's text encoders: plain weights in `dtype`, those of a quantized file as stored. None
    for a host's port, which manages its memory itself. Raises BadInput for a file that is no such encoder."""
    if model.ports is not None:
        return None
    files, around, layers = model.files.of("text"), 0, []
    for name, encoder in model.family.text_encoders.items():
        file = files.get(name)
        folder = (None if file else model.folder_of(name)) or model.family.configs
        module, bits = empty_encoder(encoder, file, folder / name)
        sizes = {}
        for part, parameters in own_parameters(module):
            for leaf, tensor in parameters.items():
                stored = bits.get(part) if leaf == "weight" else None
                sizes[id(tensor)] = int(tensor.numel() * stored / 8) if stored else tensor.numel() * dtype.itemsize
        own = [sum(sizes[id(tensor)] for tensor in layer.parameters()) for layer in repeated_layers(module)]
        around += sum(sizes.values()) - sum(own)
        layers += own
    return EncoderBytes(around, tuple(layers))
