"""Reads how a file's weights are quantized, from all of ComfyUI's markers and from GGUF types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput
from ..quantization.formats import FORMATS, Quantization
from .header import StoredTensor, WeightFile

SCALES = ("weight_scale", "scale_weight")
"""Last parts of the names of weight scales, in ComfyUI's newer and older markers."""


NOT_WEIGHTS = ("comfy_quant", "input_scale", "scale_input", *SCALES)
"""Last parts of the names of quantization metadata tensors. Input scales are for quantized activations, for which
training computes its own scales."""


MAX_MARKER = 4096
"""Bytes of a `comfy_quant` tensor, which holds a short JSON text; longer ones are refused as damaged."""


PLAIN = {"F64", "F32", "F16", "BF16", "GGUF:F32", "GGUF:F16", "GGUF:F64"}
"""Dtypes of weights that are not quantized."""


def read_markers(
    file: WeightFile, prefix: str
) -> tuple[dict[str, StoredTensor], dict[str, Quantization], dict[str, str]]:
    """Weights under `prefix`, by name without it; quantizations of the quantized modules; full names of their scales.

    Raises BadInput for an unsupported format, and for missing or superfluous scales.
    """
    path = file.path
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
    return tensors, quantizations, scales


def _declared_formats(file: WeightFile, prefix: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """ComfyUI's markers by module, from the header's metadata and the `comfy_quant` tensors."""
    declared: dict[str, dict[str, Any]] = {}
    weights = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    try:
        if text := file.metadata.get("_quantization_metadata"):
            layers = json.loads(text)["layers"]
            # Without the layers of the file's other components.
            own = {name for name in layers if name.startswith(prefix) or name in weights}
            declared |= {name.removeprefix(prefix): dict(layers[name]) for name in own}
        markers = [name for name in names if name.endswith(".comfy_quant")]
        if markers:
            with file.opened() as reader:
                for name in markers:
                    if prod(file.tensors[prefix + name].shape) > MAX_MARKER:
                        raise ValueError
                    text = bytes(reader.read(prefix + name).view(torch.uint8).tolist())
                    declared[name.removesuffix(".comfy_quant")] = dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise BadInput(f"{file.path} is damaged: its quantization metadata cannot be read.") from None
    return declared


def _quantization(
    path: Path, module: str, tensor: StoredTensor, declared: dict[str, Any] | None
) -> Quantization | None:
    """Quantization of a weight; None if it is plain. Raises BadInput for an unsupported one."""
    if declared is not None:
        name = str(declared.get("format"))
        row = FORMATS.get(name)
        if row is None or row.file_dtype is None:
            raise _not_supported(path, module, name)
        if row.file_dtype != tensor.dtype:
            raise _not_supported(path, module, f"{name} stored as {tensor.dtype}")
        params = declared.get("params")
        details = (params if isinstance(params, dict) else {}) | declared
        rotation = details.get("convrot_groupsize", 256) if details.get("convrot") else 0
        if rotation and (not _is_power_of_4(rotation) or len(tensor.shape) != 2 or tensor.shape[1] % rotation):
            raise _not_supported(path, module, f"convrot of size {rotation}")
        return Quantization(name, rotation)
    if tensor.dtype in PLAIN:
        return None
    for name, row in FORMATS.items():
        if row.file_dtype == tensor.dtype:
            return Quantization(name)
    raise _not_supported(path, module, f"values of dtype {tensor.dtype}")


def _is_power_of_4(number: Any) -> bool:
    return type(number) is int and number >= 4 and number & (number - 1) == 0 and (number.bit_length() - 1) % 2 == 0


def _not_supported(path: Path, module: str, what: str) -> BadInput:
    return BadInput(
        f"{path} has an unsupported quantization: {what} ({module}). "
        "Use the bf16, fp8, fp8 scaled, int8 or GGUF (Q2_K to Q8_0) file of the same model."
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
    bare = [m for m, q in quantizations.items() if FORMATS[q.format].needs_scale and m not in scales]
    bare += [module for module in declared if module not in scales and module not in bare]
    if bare:
        raise BadInput(f"{path} is damaged: the scale of {bare[0]} ({len(bare)} in all) is missing.")
