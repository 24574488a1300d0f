"""Transformers written as ComfyUI's users have them: one file, in every layout and number format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.models.family import family_class
from trainer.single_file.key_mapping import to_stored

Tensors = dict[str, torch.Tensor]

FLUX = "black-forest-labs/FLUX.1-Kontext-dev"
QWEN = "Qwen/Qwen-Image-Edit"
KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
FLUX_SIZES = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
}
"""Arguments of a FluxTransformer2DModel of a width that ComfyUI's own class takes, one block of each kind."""
KLEIN_SIZES = {
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 192,
    "guidance_embeds": False,
}
"""Arguments of a Flux2Transformer2DModel that ComfyUI opens, for the text of its reduced CLIP."""
LINEARS = ("attn", "mlp", "linear1", "linear2", "img_mod", "txt_mod")
"""What the published quantized files quantize: the blocks' Linears."""


def stored(base_model: str, transformer: torch.nn.Module) -> Tensors:
    """The transformer's weights under the names of a single file."""
    layout = family_class(base_model).layout(None, transformer)
    return {name: tensor.clone() for name, tensor in to_stored(layout, transformer.state_dict())}


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() == 2 and any(part in name for part in LINEARS)


def marker(**entries: Any) -> torch.Tensor:
    """A `comfy_quant` tensor."""
    return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)


def plain(state: Tensors, dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def plain_fp8(state: Tensors) -> Tensors:
    return {n: t.to(torch.float8_e4m3fn if is_quantized(n, t) else torch.bfloat16) for n, t in state.items()}


def _fp8(weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax().float() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def _each(state: Tensors, quantized: Callable[[str, torch.Tensor], Tensors]) -> Tensors:
    """The file with its Linears as `quantized` makes them of module name and weight, the rest in bf16."""
    result: Tensors = {}
    for name, tensor in state.items():
        if is_quantized(name, tensor):
            result |= quantized(name.removesuffix(".weight"), tensor)
        else:
            result[name] = tensor.to(torch.bfloat16)
    return result


def scaled_fp8(state: Tensors) -> Tensors:
    """The older marking: `scaled_fp8`, `scale_weight`, `scale_input`."""

    def make(module: str, weight: torch.Tensor) -> Tensors:
        quantized, scale = _fp8(weight)
        return {
            f"{module}.weight": quantized,
            f"{module}.scale_weight": scale,
            f"{module}.scale_input": torch.tensor(1.0),
        }

    return {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn), **_each(state, make)}


def comfy_fp8(state: Tensors, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensors:
    """The newer marking: `comfy_quant`, `weight_scale`, `input_scale`."""
    name = str(dtype).removeprefix("torch.")

    def make(module: str, weight: torch.Tensor) -> Tensors:
        quantized, scale = _fp8(weight, dtype)
        return {
            f"{module}.weight": quantized,
            f"{module}.weight_scale": scale,
            f"{module}.input_scale": torch.tensor(0.5),
            f"{module}.comfy_quant": marker(format=name, full_precision_matrix_mult=True),
        }

    return _each(state, make)


def header_fp8(state: Tensors) -> tuple[Tensors, dict[str, str]]:
    """The newer marking in the header's metadata."""
    tensors = {name: tensor for name, tensor in comfy_fp8(state).items() if not name.endswith(".comfy_quant")}
    modules = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    layers = {module: {"format": "float8_e4m3fn", "full_precision_matrix_mult": True} for module in modules}
    return tensors, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def comfy_int8(state: Tensors, rows: bool = True, rotation: int = 0) -> Tensors:
    """int8 with a scale for each tensor or row, and rotated ("convrot")."""

    def make(module: str, weight: torch.Tensor) -> Tensors:
        weight = weight.float()
        if rotation:
            weight = (weight.reshape(weight.shape[0], -1, rotation) @ _rotation(rotation)).reshape(weight.shape)
        largest = weight.abs().amax(1, keepdim=True) if rows else weight.abs().amax()
        scale = largest / 127
        entries = {"convrot": True, "convrot_groupsize": rotation} if rotation else {}
        return {
            f"{module}.weight": (weight / scale).round().to(torch.int8),
            f"{module}.weight_scale": scale,
            f"{module}.comfy_quant": marker(format="int8_tensorwise", **entries),
        }

    return _each(state, make)


def _rotation(size: int) -> torch.Tensor:
    base = torch.ones(4, 4)
    for index in range(4):
        base[index, 3 - index] = -1
    matrix = base
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, base)
    return matrix / size**0.5


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


FORMATS: dict[str, Callable[[Tensors], Tensors | tuple[Tensors, dict[str, str]]]] = {
    "fp32": lambda s: plain(s, torch.float32),
    "bf16": lambda s: plain(s, torch.bfloat16),
    "fp16": lambda s: plain(s, torch.float16),
    "bf16, model.diffusion_model.": lambda s: prefixed(plain(s, torch.bfloat16), "model.diffusion_model."),
    "bf16, diffusion_model.": lambda s: prefixed(plain(s, torch.bfloat16), "diffusion_model."),
    "fp8": plain_fp8,
    "fp8, everything": lambda s: plain(s, torch.float8_e4m3fn),
    "scaled fp8": scaled_fp8,
    "scaled fp8, model.diffusion_model.": lambda s: prefixed(scaled_fp8(s), "model.diffusion_model."),
    "comfy_quant fp8": comfy_fp8,
    "comfy_quant e5m2": lambda s: comfy_fp8(s, torch.float8_e5m2),
    "fp8 by the header": header_fp8,
    "int8 a tensor": lambda s: comfy_int8(s, rows=False),
    "int8 a row": comfy_int8,
    "int8 rotated": lambda s: comfy_int8(s, rotation=16),
}
"""Every format of a safetensors file that can be read."""


def write(path: Path, kind: str, state: Tensors) -> Path:
    """Write the file of this format."""
    made = FORMATS[kind](state)
    tensors, metadata = made if isinstance(made, tuple) else (made, {})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path
