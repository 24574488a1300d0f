"""The LoRA adapter: put into the transformer, exported in the portable form, loaded again.

The portable form is what diffusers and ComfyUI both load: keys `transformer.<module>.lora_A.weight` [rank, in] and
`.lora_B.weight` [out, rank], with alpha / rank folded into B and no alpha tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import BadInput
from .files import write_tensors
from .weights import read_weights, swapped_values

ADAPTER = "default"
PREFIX = "transformer."


class LoraAdapter:
    """A fresh LoRA on a transformer's target modules: A Kaiming-uniform, B zero, both float32; the rest is frozen."""

    def __init__(self, transformer: torch.nn.Module, targets: str, rank: int, alpha: int, seed: int) -> None:
        """`targets` is a regular expression of full module names. The transformer must be on the CPU or a device whose
        random numbers `torch.manual_seed` seeds."""
        from peft import LoraConfig

        transformer.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transformer.add_adapter(config, adapter_name=ADAPTER)
        self.scale = alpha / rank
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name, parameter in transformer.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                self.parameters[name.replace(f".{ADAPTER}.", ".")] = parameter

    def exported(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The portable state dict in the number format of the saved file."""
        return {
            PREFIX + name: (parameter.detach() * self._fold(name)).to(dtype)
            for name, parameter in self.parameters.items()
        }

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the portable file. Raises RunFailed when the disk refuses."""
        write_tensors(path, self.exported(dtype), metadata)

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the adapter computes with the values of the exported file, so that what is drawn is what it gives."""
        values = {
            name: self.exported(dtype)[PREFIX + name].to(parameter.dtype) / self._fold(name)
            for name, parameter in self.parameters.items()
        }
        with swapped_values(self.parameters, values):
            yield

    def _fold(self, name: str) -> float:
        return self.scale if ".lora_B." in name else 1.0


def load_lora(transformer: torch.nn.Module, source: Path | Mapping[str, torch.Tensor], strength: float = 1.0) -> None:
    """Load a portable LoRA, a file or its tensors, into a diffusers transformer, to draw with it.

    Raises BadInput when it is not a LoRA of this transformer.
    """
    state = read_weights(source, "LoRA file") if isinstance(source, Path) else source
    path = source if isinstance(source, Path) else "The LoRA"
    pairs = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not pairs or not all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in pairs):
        raise BadInput(
            f"{path} is not a LoRA in the expected form (keys transformer.<module>.lora_A.weight and .lora_B.weight); "
            f"it has {len(state)} tensors such as {next(iter(state), 'none')!r}."
        )
    modules = dict(transformer.named_modules())
    for name, tensor in pairs.items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        linear = modules.get(module)
        axis, features = (1, "in_features") if half == "lora_A" else (0, "out_features")
        if tensor.dim() != 2 or getattr(linear, features, None) != tensor.shape[axis]:
            raise BadInput(
                f"{path} was made for another model: {name} with shape {tuple(tensor.shape)} does not fit "
                f"{type(transformer).__name__}" + ("." if linear is None else f"'s {module} ({linear}).")
            )
    transformer.load_lora_adapter(
        {PREFIX + name: tensor for name, tensor in pairs.items()}, prefix=PREFIX[:-1], adapter_name=ADAPTER
    )
    transformer.set_adapters([ADAPTER], [strength])
