"""The transformer from a single file, as ComfyUI's users have it: read tensor by tensor, checked key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import BadInput
from .identify import describe_other, doubts_about
from .layout import Layout, Shapes, Stack, own_parameters, swapped_halves
from .quantized import Quantization, QuantizedLinear, QuantizedWeight
from .weight_files import Reader, StoredTensor, WeightFile, open_weights

if TYPE_CHECKING:
    from .family import Family

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "")
SCALES = ("weight_scale", "scale_weight")
NOT_WEIGHTS = ("comfy_quant", "input_scale", "scale_input", *SCALES)
"""Last parts of the names of tensors that tell of quantization. Scales of inputs are for quantized activations, which
training does not use."""
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
"""Formats of quantized weights that can be read, and the storage dtype of each."""
PLAIN = {"F64", "F32", "F16", "BF16", "GGUF:F32", "GGUF:F16", "GGUF:F64"}


@dataclass(frozen=True, slots=True)
class TransformerFile:
    """A transformer's file, its names without prefix and told apart."""

    file: WeightFile
    prefix: str
    tensors: Mapping[str, StoredTensor]
    """The weights."""
    quantizations: Mapping[str, Quantization]
    """Of the quantized modules, by the module's name in the file."""
    scales: Mapping[str, str]
    """Full names of the quantized modules' scales."""

    @property
    def shapes(self) -> Shapes:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_transformer(path: Path) -> TransformerFile:
    """Read the header and what it says of quantization. Raises BadInput for a file that cannot be read, and for a
    format of quantization that cannot, by its name."""
    file = open_weights(path, "transformer")
    prefix = next((p for p in PREFIXES if p and any(name.startswith(p) for name in file.tensors)), "")
    names = [name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix)]
    tensors: dict[str, StoredTensor] = {}
    scales: dict[str, str] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        if leaf in SCALES:
            scales[module] = prefix + name
        elif leaf not in NOT_WEIGHTS and name != "scaled_fp8":
            tensors[name] = file.tensors[prefix + name]
    declared = _declared_formats(file, prefix, names)
    quantizations: dict[str, Quantization] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and (quantization := _quantization(path, module, tensor, declared.get(module))):
            quantizations[module] = quantization
    _check_scales(path, quantizations, declared, scales)
    return TransformerFile(file, prefix, tensors, quantizations, scales)


def _declared_formats(file: WeightFile, prefix: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What ComfyUI's markers say of each module: the header's metadata and the `comfy_quant` tensors."""
    declared: dict[str, dict[str, Any]] = {}
    try:
        if text := file.metadata.get("_quantization_metadata"):
            layers = json.loads(text)["layers"]
            declared |= {name.removeprefix(prefix): dict(entry) for name, entry in layers.items()}
        markers = [name for name in names if name.endswith(".comfy_quant")]
        if markers:
            with file.opened() as reader:
                for name in markers:
                    text = bytes(reader.read(prefix + name).view(torch.uint8).tolist())
                    declared[name.removesuffix(".comfy_quant")] = dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{file.path} is damaged: what it says of its quantization cannot be read.") from None
    return declared


def _quantization(
    path: Path, module: str, tensor: StoredTensor, declared: dict[str, Any] | None
) -> Quantization | None:
    """How a weight is quantized, None when it is not. Raises BadInput for what cannot be read."""
    if declared is not None:
        name = str(declared.get("format"))
        if FORMATS.get(name) != tensor.dtype:
            raise _not_supported(path, module, f"{name} stored as {tensor.dtype}" if name in FORMATS else name)
        details = declared.get("params") if isinstance(declared.get("params"), dict) else {}
        details = details | declared
        rotation = int(details.get("convrot_groupsize", 256)) if details.get("convrot") else 0
        if rotation and (tensor.shape[1] % rotation or not _is_power_of_4(rotation)):
            raise _not_supported(path, module, f"convrot of size {rotation}")
        return Quantization(name, rotation)
    if tensor.dtype in PLAIN:
        return None
    if tensor.dtype.startswith("GGUF:"):
        name = tensor.dtype.removeprefix("GGUF:")
        if name not in _readable_ggml_types():
            raise _not_supported(path, module, f"GGUF type {name}")
        return Quantization(f"gguf:{name}")
    for name, stored in FORMATS.items():
        if stored == tensor.dtype:
            return Quantization(name)
    raise _not_supported(path, module, f"numbers of type {tensor.dtype}")


def _is_power_of_4(number: int) -> bool:
    return number >= 4 and number & (number - 1) == 0 and (number.bit_length() - 1) % 2 == 0


def _readable_ggml_types() -> set[str]:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    return {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}


def _not_supported(path: Path, module: str, what: str) -> BadInput:
    return BadInput(
        f"{path} is quantized in a way that cannot be read yet: {what} ({module}). "
        "Take the bf16, fp8, fp8 scaled, int8 or GGUF (Q2_K to Q8_0) file of the same model."
    )


def _check_scales(
    path: Path,
    quantizations: Mapping[str, Quantization],
    declared: Mapping[str, object],
    scales: Mapping[str, str],
) -> None:
    astray = [module for module in scales if module not in quantizations]
    if astray:
        raise BadInput(f"{path} has a scale for {astray[0]} ({len(astray)} in all), whose weight is not quantized.")
    bare = [m for m, q in quantizations.items() if q.format == "int8_tensorwise" and m not in scales]
    bare += [module for module in declared if module not in scales and module not in bare]
    if bare:
        raise BadInput(f"{path} is damaged: the scale of {bare[0]} ({len(bare)} in all) is missing.")


def check_single_file(family: Family, path: Path) -> None:
    """Raises BadInput, from the header alone, when `path` is not a whole transformer of this family."""
    _empty_for(family, open_transformer(path), None)


def empty_single_file(family: Family, path: Path, config: Mapping[str, Any] | None = None) -> nn.Module:
    """The transformer that `load_single_file` fills, on the meta device, from the header alone."""
    return _empty_for(family, open_transformer(path), config)[0]


def doubts_of(path: Path, base_model: str) -> list[str]:
    """What in the file speaks against its being the weights of `base_model`, in sentences."""
    file = open_weights(path, "transformer")
    return doubts_about(path, file.metadata, base_model)


def load_single_file(
    family: Family, path: Path, dtype: torch.dtype, config: Mapping[str, Any] | None = None
) -> nn.Module:
    """The transformer on the CPU: plain weights in `dtype`, quantized ones as they are stored.

    Read tensor by tensor: host memory beyond the model's own stays at one tensor. `config` is diffusers', where it is
    known; else it follows from the shapes. Raises BadInput when the file is not this model's, with every key checked.
    """
    source = open_transformer(path)
    transformer, layout = _empty_for(family, source, config)
    modules = dict(own_parameters(transformer))
    with source.file.opened() as reader:
        for stack in layout:
            _fill(transformer, modules, source, reader, stack, dtype)
    return transformer


def _empty_for(family: Family, source: TransformerFile, config: Mapping[str, Any] | None) -> tuple[nn.Module, Layout]:
    """The transformer without weights, and the file's layout, every key and shape of it checked."""
    path, shapes = source.file.path, source.shapes
    if other := describe_other(source.file, shapes, family.name):
        raise BadInput(f"{path} is not a transformer of {family.name}: it is {other}.")
    try:
        transformer = family.empty_transformer(config or family.transformer_config(shapes))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise BadInput(
            f"{path} is not a transformer of {family.name}: it has {len(source.file.tensors)} tensors such as "
            f"{next(iter(source.file.tensors), 'none')!r}."
        ) from None
    layout = family.layout(transformer)
    expected = _expected_shapes(transformer, layout)
    faults = [f"{name} is missing" for name in expected if _alias(name, shapes) is None]
    known = {_alias(name, shapes) for name in expected}
    faults += [f"{name} does not belong there" for name in shapes if name not in known]
    faults += [
        f"{name} has shape {tuple(shapes[found])}, not {shape}"
        for name, shape in expected.items()
        if (found := _alias(name, shapes)) is not None and tuple(shapes[found]) != shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BadInput(f"{path} is not a whole transformer of {family.name}: {'; '.join(faults[:5])}{more}.")
    return transformer, layout


def _expected_shapes(transformer: nn.Module, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file of this transformer."""
    modules = dict(own_parameters(transformer))
    expected = {}
    for stack in layout:
        for leaf in modules[stack.modules[0]]:
            parts = [modules[name][leaf].shape for name in stack.modules]
            expected[stack.stored_name(leaf)] = (sum(shape[0] for shape in parts), *parts[0][1:])
    return expected


def _alias(name: str, shapes: Mapping[str, object]) -> str | None:
    """The name under which the file has it: some write a norm's `scale` as `weight`."""
    if name in shapes:
        return name
    other = f"{name.removesuffix('.scale')}.weight"
    return other if name.endswith(".scale") and other in shapes else None


def _fill(
    transformer: nn.Module,
    modules: Mapping[str, Mapping[str, nn.Parameter]],
    source: TransformerFile,
    reader: Reader,
    stack: Stack,
    dtype: torch.dtype,
) -> None:
    """Give the stack's modules their weights."""
    rows = [next(iter(modules[name].values())).shape[0] for name in stack.modules]

    def read(leaf: str) -> list[torch.Tensor]:
        name = _alias(stack.stored_name(leaf), source.tensors)
        values = reader.read(source.prefix + name).reshape(source.tensors[name].shape)
        values = swapped_halves(values) if stack.swapped else values
        # Copies, also where nothing is converted: what is read may be the file's own memory.
        return [part.to(dtype, copy=True) for part in values.split(rows)]

    quantized = None
    if quantization := source.quantizations.get(stack.stored):
        quantized = _read_quantized(source, reader, stack, quantization).split(rows)
    for leaf in modules[stack.modules[0]]:
        if leaf == "weight" and quantized:
            continue
        for name, values in zip(stack.modules, read(leaf), strict=True):
            setattr(transformer.get_submodule(name), leaf, nn.Parameter(values, requires_grad=False))
    for name, weight in zip(stack.modules, quantized or (), strict=quantized is not None):
        _set_quantized(transformer, name, weight, dtype)


def _read_quantized(
    source: TransformerFile, reader: Reader, stack: Stack, quantization: Quantization
) -> QuantizedWeight:
    codes = reader.read(f"{source.prefix}{stack.stored}.weight")
    scale = None
    if stack.stored in source.scales:
        scale = reader.read(source.scales[stack.stored]).float()
        if scale.numel() not in (1, codes.shape[0]):
            raise BadInput(
                f"{source.file.path}: the scale of {stack.stored} has shape {tuple(scale.shape)}; one number or one "
                "for each row can be read."
            )
        scale = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
    if stack.swapped:
        codes = swapped_halves(codes.view(torch.uint8)).view(codes.dtype)
        scale = swapped_halves(scale) if scale is not None and scale.numel() > 1 else scale
    return QuantizedWeight(codes, scale, quantization)


def _set_quantized(transformer: nn.Module, name: str, weight: QuantizedWeight, dtype: torch.dtype) -> None:
    module = transformer.get_submodule(name)
    if not isinstance(module, nn.Linear):
        module.weight = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
        return
    own = QuantizedWeight(
        weight.codes.clone(), None if weight.scale is None else weight.scale.clone(), weight.quantization
    )
    transformer.set_submodule(name, QuantizedLinear(own, module.in_features, module.bias))
