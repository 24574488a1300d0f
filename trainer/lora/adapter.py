"""LoraAdapter, which adds a LoRA to a transformer and exports it; `load_lora` loads one for inference.

The portable form is loaded by both diffusers and ComfyUI: keys `transformer.<module>.lora_A.weight` [rank, in] and
`.lora_B.weight` [out, rank], with alpha / rank folded into B and no alpha tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import BadInput
from ..single_file.header import open_weights
from ..tensors import read_weights, write_tensors
from .formats import count_text_encoder_tensors, to_portable
from .layer import LoraLinear
from .scales import PREFIX, read_metadata, unknown_scale_note

if TYPE_CHECKING:
    from ..models.family import Family


LoraSource = Path | Mapping[str, torch.Tensor]
"""A LoRA file, or its tensors."""


ADAPTER = "default"
"""PEFT's name of the adapter."""


class LoraAdapter:
    """A float32 LoRA on a transformer's target modules; all other weights are frozen."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        targets: str,
        rank: int,
        alpha: int,
        seed: int,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """`targets` is a regular expression of full module names.

        A fresh LoRA has a Kaiming-uniform A and a zero B, as in PEFT. `start`, A [r, in features] and
        B [out features, r] of any float dtype with r <= rank, replaces the first rows of A and columns of B; the other
        columns of B stay zero.
        """
        transformer.requires_grad_(False)
        self.scale = alpha / rank
        self._layers: list[LoraLinear] = []
        for name, layer in list(transformer.named_modules()):
            if isinstance(layer, torch.nn.Linear) and re.fullmatch(targets, name):
                self._layers.append(LoraLinear(layer, rank, self.scale))
                transformer.set_submodule(name, self._layers[-1])
        self.parameters: dict[str, torch.nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in transformer.named_parameters():
            if parameter.requires_grad:
                values = self._first_values(name, parameter.shape, generator, (start or {}).get(PREFIX + name))
                parameter.data = values.to(parameter.device)
                self.parameters[name] = parameter

    def exported(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The portable state dict in `dtype`: A [rank, in features] and B [out features, rank]."""
        return portable_tensors(self.parameters, self.scale, dtype)

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the portable file. Raises RunFailed if writing fails."""
        write_tensors(path, self.exported(dtype), metadata)

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Context in which the adapter has the values of the exported file, so that samples match the file.

        The layers point at them as they are stored, in `dtype` and with the scale in B; the trained values wait.
        """
        trained = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = _portable(name, parameter, self.scale, dtype)
        for layer in self._layers:
            layer.scale = 1.0
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = trained[name].to(parameter.device)  # offloading may have moved the transformer
            for layer in self._layers:
                layer.scale = self.scale

    def remove(self, transformer: torch.nn.Module) -> None:
        """Put the base's own layers back into the transformer that the LoRA was added to."""
        for name, module in list(transformer.named_modules()):
            if isinstance(module, LoraLinear):
                transformer.set_submodule(name, module.base_layer)

    def _first_values(
        self, name: str, shape: torch.Size, generator: torch.Generator, start: torch.Tensor | None
    ) -> torch.Tensor:
        values = torch.zeros(shape)
        if ".lora_A." in name:
            torch.nn.init.kaiming_uniform_(values, a=5**0.5, generator=generator)
        if start is not None:
            values[: start.shape[0], : start.shape[1]] = start.float() / _fold(name, self.scale)
        return values


def portable_tensors(trained: Mapping[str, torch.Tensor], scale: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the portable state dict in `dtype` of trained weights by parameter name, A [rank, in features] and
    B [out features, rank] float32; `scale` is alpha / rank."""
    return {PREFIX + name: _portable(name, tensor, scale, dtype) for name, tensor in trained.items()}


def _portable(name: str, tensor: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    values, fold = tensor.detach(), _fold(name, scale)
    return (values if fold == 1.0 else values * fold).to(dtype)


def _fold(name: str, scale: float) -> float:
    return scale if ".lora_B." in name else 1.0


def read_lora(source: LoraSource, family: Family, transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Read a LoRA of any known format into the portable form, A [rank, in] and B [out, rank] float32.

    The transformer may be on the meta device. Raises BadInput if it is not a LoRA of this transformer.
    """
    if isinstance(source, Path):
        metadata = read_metadata(source)  # checks the header, and says more of a foreign file than the library does
        return to_portable(read_weights(source, "LoRA file"), family, transformer, str(source), metadata)
    return to_portable(source, family, transformer, "The LoRA")


def load_lora(transformer: torch.nn.Module, family: Family, source: LoraSource, strength: float = 1.0) -> None:
    """Load a LoRA of any known format into a diffusers transformer for inference; its tensors, if `source` holds them,
    are [rank, in] and [out, rank] of any float dtype.

    Raises BadInput if it is not a LoRA of this transformer.
    """
    from diffusers.loaders import PeftAdapterMixin

    assert isinstance(transformer, PeftAdapterMixin)
    portable = of_one_rank(read_lora(source, family, transformer))
    transformer.load_lora_adapter(portable, prefix=PREFIX[:-1], adapter_name=ADAPTER)
    set_strength(transformer, strength)


def set_strength(transformer: torch.nn.Module, strength: float) -> None:
    """Set the strength of the LoRA that `load_lora` has loaded."""
    from diffusers.loaders import PeftAdapterMixin

    assert isinstance(transformer, PeftAdapterMixin)
    transformer.set_adapters([ADAPTER], [strength])


def unload_lora(transformer: torch.nn.Module) -> None:
    """Remove the LoRA that `load_lora` has loaded; the layers below it stay as they are."""
    from diffusers.loaders import PeftAdapterMixin

    assert isinstance(transformer, PeftAdapterMixin)
    transformer.unload_lora()


def source_state(source: LoraSource | None) -> object:
    """Value by which a LoRA is known again without reading it: path, size and modification time of a file, the identity
    of tensors of any shape and dtype. Raises BadInput for a file that is gone."""
    if not isinstance(source, Path):
        return None if source is None else id(source)
    try:
        state = source.stat()
    except FileNotFoundError:
        raise BadInput(f"The LoRA file {source} does not exist.") from None
    except OSError as error:
        raise BadInput(f"The LoRA file {source} cannot be read: {error.strerror or error}.") from None
    return source, state.st_size, state.st_mtime_ns


def of_one_rank(portable: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad A [rank, in] and B [out, rank] float32 of every module with zeros to the largest rank, which changes no
    product.

    diffusers takes one alpha for all modules, so that some of its versions scale those of other ranks.
    """
    rank = max((tensor.shape[0] for name, tensor in portable.items() if ".lora_A." in name), default=0)
    padded = {}
    for name, tensor in portable.items():
        missing = rank - tensor.shape[0 if ".lora_A." in name else 1]
        sides = (0, 0, 0, missing) if ".lora_A." in name else (0, missing)
        padded[name] = torch.nn.functional.pad(tensor, sides) if missing else tensor
    return padded


def lora_notes(source: LoraSource) -> list[str]:
    """Notes on what of a LoRA is not used or not known. Raises BadInput for an unreadable file.

    Only names of tensors are looked at; they may have any shape and dtype.
    """
    metadata = read_metadata(source) if isinstance(source, Path) else {}
    names = open_weights(source, "LoRA file").tensors if isinstance(source, Path) else source
    what = source.name if isinstance(source, Path) else "The LoRA"
    notes = [ignored_tensors_note(source), unknown_scale_note(what, list(names), metadata)]
    return [note for note in notes if note]


def ignored_tensors_note(source: LoraSource) -> str | None:
    """A note on the tensors of a LoRA that are not used; None if all are. Raises BadInput for an unreadable file.

    Only names of tensors are looked at; they may have any shape and dtype.
    """
    names = open_weights(source, "LoRA file").tensors if isinstance(source, Path) else source
    count = count_text_encoder_tensors(names)
    name = source.name if isinstance(source, Path) else "The LoRA"
    return f"{name}: {count} tensors for text encoders are ignored." if count else None
