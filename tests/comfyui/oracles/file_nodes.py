"""Nodes that hold our single files against ComfyUI's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io, ui

from .comfy_models import FULL_SIZE, empty_model
from .trainer_access import trainer

KINDS = {
    "black-forest-labs/FLUX.1-Kontext-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "Qwen/Qwen-Image-Edit": ("QwenImageTransformer2DModel", {}),
    "Qwen/Qwen-Image-Edit-2509": ("QwenImageTransformer2DModel", {}),
    "Qwen/Qwen-Image-Edit-2511": ("QwenImageTransformer2DModel", {"zero_cond_t": True}),
    "black-forest-labs/FLUX.2-klein-base-4B": ("Flux2Transformer2DModel", {}),
    "black-forest-labs/FLUX.2-klein-base-9B": (
        "Flux2Transformer2DModel",
        {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
    ),
}


class FullSizeLayout(io.ComfyNode):
    """Whether our single file has exactly the keys and shapes of ComfyUI's full-size model, is detected as it, and
    loads with strict keys."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("base_model", options=list(KINDS))]
        return io.Schema(node_id="OracleFullSizeLayout", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, base_model: str) -> io.NodeOutput:
        family = trainer("models.edit_model").open_model(base_model).family
        kind, options = KINDS[base_model]
        transformer = family.empty_transformer(FULL_SIZE[kind] | {"_class_name": kind, **options})
        mapping = trainer("single_file.key_mapping")
        stored = dict(mapping.to_stored(family.layout(transformer), transformer.state_dict()))
        stored |= mapping.marker_tensors(family.variant.marker)
        detected = comfy.model_detection.model_config_from_unet(dict(stored), "")
        marked = {"default_ref_method": "index_timestep_zero"} if family.variant.marker else {}
        model = empty_model(FULL_SIZE[kind] | options | {"_class_name": kind} | marked, torch.device("meta"))
        loaded = detected.process_unet_state_dict(dict(stored))
        theirs = {name: tuple(tensor.shape) for name, tensor in model.diffusion_model.state_dict().items()}
        ours = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        config = family.transformer_config({name: tuple(tensor.shape) for name, tensor in stored.items()})
        known = {name: value for name, value in transformer.config.items() if name in config}
        model.diffusion_model.load_state_dict(loaded, strict=True, assign=True)
        report = {
            "detected": type(detected).__name__,
            "method": detected.unet_config.get("default_ref_method"),
            "keys": len(ours),
            "missing": sorted(theirs.keys() - ours.keys()),
            "left_over": sorted(ours.keys() - theirs.keys()),
            "misfits": sorted(name for name in ours if theirs.get(name) != ours[name]),
            "same_config": all(list(_flat(config[name])) == list(_flat(known[name])) for name in known if known[name]),
        }
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple | list) else [value]


class SingleFile(io.ComfyNode):
    """A single file, loaded by ComfyUI and by us: every weight, and one prediction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("base_model", options=list(KINDS)), io.String.Input("file")]
        return io.Schema(node_id="OracleSingleFile", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, base_model: str, file: str) -> io.NodeOutput:
        sources = trainer("models.edit_model")
        model = sources.open_model(base_model, files=sources.ModelFiles(transformer=Path(file)))
        ours = model.load_transformer(torch.device("cpu"), torch.float32)
        patcher = comfy.sd.load_diffusion_model(file, {"dtype": torch.float32})
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        theirs = patcher.model.diffusion_model
        report = {"weights": _unequal_weights(model.family, ours, theirs)}
        _multiply_in_full_precision(theirs)
        with torch.no_grad():
            first, second = _predictions(model.family, ours, theirs)
        report["output"] = (torch.linalg.vector_norm(first - second) / torch.linalg.vector_norm(second)).item()
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


def _unequal_weights(family, ours: torch.nn.Module, theirs: torch.nn.Module) -> list[str]:
    """Names of the weights that are not bit for bit ComfyUI's, once both are dequantized."""
    quantized, layout = trainer("quantization.linear"), trainer("single_file.key_mapping")
    state = {}
    for name, module in ours.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            is_codes = leaf == "weight" and isinstance(module, quantized.QuantizedLinear)
            state[f"{name}.{leaf}"] = module.dequantized(torch.float32) if is_codes else parameter
    unequal = []
    parameters = dict(theirs.named_parameters())
    for name, tensor in layout.to_stored(family.layout(ours), state):
        other = _plain(parameters.get(name, parameters.get(name.replace("_norm.scale", "_norm.weight"))))
        if not torch.equal(tensor.float(), other.float()):
            unequal.append(name)
    return unequal


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.data.dequantize() if hasattr(weight.data, "_qdata") else weight.data


def _multiply_in_full_precision(model: torch.nn.Module) -> None:
    """ComfyUI rounds what goes into an int8 layer to int8 as well; with the weights that it dequantizes itself, it
    does not."""
    for module in model.modules():
        if getattr(module, "quant_format", None) == "int8_tensorwise":
            module.weight = torch.nn.Parameter(_plain(module.weight), requires_grad=False)


def _predictions(family, ours: torch.nn.Module, theirs: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """One velocity by each model for the same latents, control, text and time."""
    draw = torch.Generator().manual_seed(5)
    noisy, control = torch.randn(1, 16, 8, 8, generator=draw), torch.randn(1, 16, 8, 12, generator=draw)
    qwen, klein = family.info.name == "qwen-image-edit", family.info.name == "flux2-klein"
    # Both count the text's positions from the largest image, or from the target: equal where the target is largest.
    noisy = torch.randn(1, 16, 12, 12, generator=draw) if qwen else noisy
    noisy, control = (image.repeat(1, 8, 1, 1) if klein else image for image in (noisy, control))
    text = {"prompt_embeds": torch.randn(1, 7, ours.config.joint_attention_dim, generator=draw)}
    options = {}
    if not qwen and not klein:
        text["pooled_prompt_embeds"] = torch.randn(1, ours.config.pooled_projection_dim, generator=draw)
        options = {"y": text["pooled_prompt_embeds"], "guidance": torch.tensor([2.5])}
    sigma = torch.tensor([0.6])
    first = family.predict(ours, family.pack(noisy), [family.pack(control)], text, sigma, 2.5)
    frames = (lambda x: x.unsqueeze(2)) if qwen else lambda x: x
    second = theirs(frames(noisy), sigma, text["prompt_embeds"], ref_latents=[frames(control)], **options)
    return first, family.pack(second.reshape(noisy.shape)).tokens
