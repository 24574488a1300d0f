"""Fills a module with the weights of a file, one tensor at a time, after a check of all keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from ..config.settings import Precision
from ..errors import BadInput
from ..modules import own_parameters
from ..quantization.formats import Quantization, QuantizedWeight, format_of
from ..quantization.linear import QuantizedLinear
from ..quantization.quantize import large_weights, quantize
from .header import Reader, StoredTensor, WeightFile, open_weights
from .key_mapping import FusedModule, Layout, Shapes, swapped_halves
from .quantization_metadata import read_markers

QUANTIZING = ("cuda", "xpu")
"""Types of the devices that quantize weights while they are loaded; the CPU does it for the others."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """The tensors of one module in a file, separated into weights and quantization metadata."""

    file: WeightFile
    prefix: str
    tensors: Mapping[str, StoredTensor]
    """Weights and biases by name, without prefix."""
    quantizations: Mapping[str, Quantization]
    """Quantizations by the quantized module's name in the file."""
    scales: Mapping[str, str]
    """Full names of the scale tensors, by module."""

    @property
    def shapes(self) -> Shapes:
        """Shapes of the weights and biases by name, without prefix."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


class WeightSink(Protocol):
    """Port: takes a module's weights as they are loaded."""

    device: torch.device
    """The device of the run, which quantizes."""

    def begin(self, module: nn.Module) -> None:
        """Take the module, still without storage, before its weights are loaded."""
        ...

    def device_of(self, name: str) -> torch.device:
        """Choose the device of the weights of a submodule."""
        ...

    def filled(self, name: str) -> None:
        """Take note that all weights of a submodule are loaded."""
        ...


class OneDevice:
    """WeightSink that loads all weights to one device."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def begin(self, module: nn.Module) -> None:
        """Do nothing."""

    def device_of(self, name: str) -> torch.device:
        """Return the device."""
        return self.device

    def filled(self, name: str) -> None:
        """Do nothing."""


ON_CPU = OneDevice("cpu")


def open_module(path: Path, what: str, prefixes: Collection[str]) -> ModuleFile:
    """Read the header of a file with a module and its quantization; `what` names the expected content in messages.

    The module's tensors are those with the first of `prefixes` that any tensor has; if none has one, all tensors.
    Raises BadInput for an unreadable file or an unsupported quantization.
    """
    return select_module(open_weights(path, what), what, prefixes)


def select_module(file: WeightFile, what: str, prefixes: Collection[str] = ()) -> ModuleFile:
    """Separate the tensors of a file with a module, as `open_module` does."""
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in file.tensors)), "")
    source = ModuleFile(file, prefix, *read_markers(file, prefix))
    if empty := next((name for name, shape in source.shapes.items() if 0 in shape and not is_marker(name)), None):
        raise BadInput(f"{file.path} is no usable {what}: {empty} is an empty tensor.")
    return source


def is_marker(name: str) -> bool:
    """Tell whether a tensor of this name marks what a file is, as ComfyUI's files do with empty tensors."""
    return name.startswith("__") and name.endswith("__")


def check_keys(module: nn.Module, layout: Layout, source: ModuleFile, what: str, ignored: Collection[str] = ()) -> None:
    """Check that the file has exactly the tensors of a module in this layout, except for `ignored` ones. Raises
    BadInput with those that are missing, left over or of another shape; `what` names the module."""
    shapes = source.shapes
    expected = _expected_shapes(module, layout)
    faults = [f"{name} is missing" for name in expected if _alias(name, shapes) is None]
    known = {_alias(name, shapes) for name in expected} | set(ignored)
    faults += [f"{name} does not belong there" for name in shapes if name not in known]
    faults += [
        f"{name} has shape {tuple(shapes[found])}, not {shape}"
        for name, shape in expected.items()
        if (found := _alias(name, shapes)) is not None and tuple(shapes[found]) != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BadInput(f"{source.file.path} is not a whole {what}: {'; '.join(faults[:5])}{more}.")


def fill_module(
    module: nn.Module,
    layout: Layout,
    source: ModuleFile,
    dtype: torch.dtype,
    precision: Precision | None = None,
    sink: WeightSink = ON_CPU,
) -> None:
    """Load a file's weights into a module whose keys have been checked.

    Quantized weights of Linears stay as they are stored; plain ones become `dtype`, or `precision` for the Linears of
    the repeated blocks if it is a quantized one. `sink` says where they go; host memory exceeds what it keeps there by
    one tensor. Raises BadInput for a `precision` that needs a missing package.
    """
    sink.begin(module)
    modules = dict(own_parameters(module))
    made = large_weights(module) if format_of(precision) else ()
    with source.file.opened() as reader:
        for fused in layout:
            wanted = precision if fused.modules[0] in made else None
            _fill(module, modules, source, reader, fused, dtype, wanted, sink)
            for name in fused.modules:
                sink.filled(name)


def _expected_shapes(module: nn.Module, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a file with this module, by name."""
    modules = dict(own_parameters(module))
    expected = {}
    for fused in layout:
        for leaf in modules[fused.modules[0]]:
            parts = [modules[name][leaf].shape for name in fused.modules]
            expected[fused.stored_name(leaf)] = (sum(shape[0] for shape in parts), *parts[0][1:])
    return expected


def _alias(name: str, shapes: Mapping[str, object]) -> str | None:
    """The file's name for a tensor; some files have a norm's `scale` as `weight`. None if it is missing."""
    if name in shapes:
        return name
    other = f"{name.removesuffix('.scale')}.weight"
    return other if name.endswith(".scale") and other in shapes else None


def _fill(
    root: nn.Module,
    modules: Mapping[str, Mapping[str, nn.Parameter]],
    source: ModuleFile,
    reader: Reader,
    fused: FusedModule,
    dtype: torch.dtype,
    precision: Precision | None,
    sink: WeightSink,
) -> None:
    """Load the weights of one fused module; with a `precision` its plain `weight` is quantized."""
    rows = [next(iter(modules[name].values())).shape[0] for name in fused.modules]

    def read(leaf: str) -> Sequence[torch.Tensor]:
        name = _alias(fused.stored_name(leaf), source.tensors)
        assert name is not None, "check_keys has found all names"
        values = reader.read(source.prefix + name).reshape(source.tensors[name].shape)
        return (swapped_halves(values) if fused.swapped else values).split(rows)

    quantized = None
    if quantization := source.quantizations.get(fused.stored):
        stored = _read_quantized(source, reader, fused, quantization).split(rows)
        # Copied, as below, because the reader may return the file's memory.
        quantized = [weight.clone() for weight in stored]
    elif precision:
        worker = sink.device if sink.device.type in QUANTIZING else torch.device("cpu")
        quantized = [quantize(part.to(worker), precision, worker) for part in read("weight")]
    for leaf in modules[fused.modules[0]]:
        if leaf == "weight" and quantized:
            continue
        for name, values in zip(fused.modules, read(leaf), strict=True):
            own = values.to(sink.device_of(name), dtype, copy=True)
            setattr(root.get_submodule(name), leaf, nn.Parameter(own, requires_grad=False))
    for name, weight in zip(fused.modules, quantized or (), strict=quantized is not None):
        _set_quantized(root, name, weight, dtype)
        root.get_submodule(name).to(sink.device_of(name))


def _read_quantized(
    source: ModuleFile, reader: Reader, fused: FusedModule, quantization: Quantization
) -> QuantizedWeight:
    quantized = reader.read(f"{source.prefix}{fused.stored}.weight")
    scale = None
    if fused.stored in source.scales:
        scale = reader.read(source.scales[fused.stored]).float()
        if scale.numel() not in (1, quantized.shape[0]):
            raise BadInput(
                f"{source.file.path}: the scale of {fused.stored} has shape {tuple(scale.shape)}; only one scale "
                "for all rows or one per row is supported."
            )
        scale = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
    if fused.swapped:
        quantized = swapped_halves(quantized.view(torch.uint8)).view(quantized.dtype)
        scale = swapped_halves(scale) if scale is not None and scale.numel() > 1 else scale
    return QuantizedWeight(quantized, scale, quantization)


def _set_quantized(root: nn.Module, name: str, weight: QuantizedWeight, dtype: torch.dtype) -> None:
    module = root.get_submodule(name)
    if not isinstance(module, nn.Linear):
        module.weight = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
        return
    root.set_submodule(name, QuantizedLinear(weight, module.in_features, module.bias))
