"""A second LoRA that is applied while samples are drawn, such as one that needs few steps, and not in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..config.settings import RunSettings
from ..errors import BadInput
from ..paths import typed_file
from .adapter import lora_notes, read_lora
from .scales import PREFIX

if TYPE_CHECKING:
    from ..models.edit_model import EditModel


class SampleLora:
    """A LoRA file, read and checked against the model."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], strength: float, notices: list[str]) -> None:
        """`tensors` are `[rank, in]` and `[out, rank]` of a float dtype in the portable form."""
        self.notices = notices
        """Sentences on parts of the file that are left out."""
        self._tensors, self._strength = tensors, strength

    @contextmanager
    def applied(self, transformer: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
        """Context in which the transformer's layers, whatever they are, add the LoRA in `dtype`.

        Layers that are streamed or wait in host memory, and those with a LoRA in training, stay as they are inside.
        """
        replaced: dict[str, torch.nn.Module] = {}
        try:
            for name in {name.rpartition(".lora_")[0] for name in self._tensors}:
                module = name.removeprefix(PREFIX)
                a, b = (self._tensors[f"{name}.lora_{part}.weight"].to(device, dtype) for part in "AB")
                replaced[module] = transformer.get_submodule(module)
                transformer.set_submodule(module, _WithLora(replaced[module], a, b * self._strength))
            yield
        finally:
            for module, layer in replaced.items():
                transformer.set_submodule(module, layer)


class _WithLora(torch.nn.Module):
    """A layer from [..., in] to [..., out features] with B [out, rank] times A [rank, in] of one dtype added."""

    def __init__(self, layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self._a, self._b = a, b

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result = self.layer(input)
        return result + (input.to(self._a.dtype) @ self._a.t() @ self._b.t()).to(result.dtype)


def open_sample_lora(model: EditModel, settings: RunSettings) -> SampleLora | None:
    """Read the LoRA file that the settings name for samples; None when they name none. Loads no weights of the model.

    Raises BadInput when the file does not exist or is not a LoRA of this model.
    """
    if not settings.sample_lora:
        return None
    path = typed_file(settings.sample_lora, "sample_lora")
    try:
        tensors = read_lora(path, model.family, model.empty_transformer())
    except BadInput as error:
        raise BadInput(f"sample_lora: {error}") from None
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    return SampleLora(halved, settings.sample_lora_strength, lora_notes(path))
