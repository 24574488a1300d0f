"""ComfyUI's Flux and QwenImage, built from diffusers' weights of any size."""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_detection import convert_diffusers_mmdit
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__
from safetensors.torch import load_file

from .trainer_access import trainer

Weights = dict[str, torch.Tensor]

CPU = torch.device("cpu")
OPENS_SMALL_FLUX = tuple(map(int, __version__.split(".")[:2])) >= (0, 33)
FULL_SIZE: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "pooled_projection_dim": 768,
        "joint_attention_dim": 4096,
        "axes_dims_rope": [16, 56, 56],
    },
    "QwenImageTransformer2DModel": {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "num_layers": 60,
        "joint_attention_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
    },
    "Flux2Transformer2DModel": {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "num_layers": 5,
        "num_single_layers": 20,
        "joint_attention_dim": 7680,
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": False,
    },
}
"""transformer/config.json of the published models, as far as ComfyUI's classes ask for it."""


def read_transformer(folder: Path) -> tuple[dict[str, Any], Weights]:
    """Config and float32 weights of a folder in diffusers' layout."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    return config, {name: tensor.float() for name, tensor in weights.items()}


def native(config: dict[str, Any], weights: Weights) -> Weights:
    """Weights under the names that ComfyUI's class has for them."""
    if "Flux2" in config["_class_name"]:
        mapping, files = trainer("single_file.key_mapping"), trainer("models.flux2_single_file")
        layout = files.flux2_layout(config["num_layers"], config["num_single_layers"])
        stored = dict(mapping.to_stored(layout, weights))
        return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in stored.items()}
    return convert_diffusers_mmdit(weights, "") if "Flux" in config["_class_name"] else weights


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ComfyUI's class."""
    if "Qwen" in config["_class_name"]:
        names = ("num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "axes_dims_rope")
        names += ("default_ref_method",) if "default_ref_method" in config else ()
        return {"image_model": "qwen_image", "in_channels": 64} | {name: config[name] for name in names}
    if "Flux2" in config["_class_name"]:
        return flux2_unet_config(config)
    return {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["attention_head_dim"] * config["num_attention_heads"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": 4.0,
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }


def flux2_unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ComfyUI's Flux for FLUX.2 [klein]."""
    return {
        "image_model": "flux2",
        "in_channels": config.get("in_channels", 128),
        "out_channels": config.get("in_channels", 128),
        "patch_size": 1,
        "vec_in_dim": None,
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["attention_head_dim"] * config["num_attention_heads"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": 3.0,
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 2000,
        "qkv_bias": False,
        "ops_bias": False,
        "guidance_embed": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
    }


def empty_model(config: dict[str, Any], device: torch.device) -> comfy.model_base.BaseModel:
    """ComfyUI's model without its weights."""
    models = comfy.supported_models
    name = config["_class_name"]
    kind = models.QwenImage if "Qwen" in name else models.Flux2 if "Flux2" in name else models.Flux
    model_config = kind(unet_config(config))
    model_config.set_inference_dtype(torch.float32, None)
    return model_config.get_model({}, "", device=device)


def load_model(config: dict[str, Any], weights: Weights) -> ModelPatcher:
    """A MODEL with these weights: opened as a file where ComfyUI can, else its class built directly."""
    if "Flux2" in config["_class_name"] and config["in_channels"] == 128:
        return comfy.sd.load_diffusion_model_state_dict(native(config, weights), {"dtype": torch.float32})
    if config["_class_name"] == "FluxTransformer2DModel" and OPENS_SMALL_FLUX:
        return comfy.sd.load_diffusion_model_state_dict(dict(weights), {"dtype": torch.float32})
    model = empty_model(config, CPU)
    missing, unexpected = model.diffusion_model.load_state_dict(native(config, weights), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    if "Flux2" in config["_class_name"]:
        # The tiny model's latents have fewer channels, and its texts 32 tokens, which ComfyUI would pad to the 512 of
        # the published models.
        model.latent_format.latent_channels = config["in_channels"]
        model.extra_conds = MethodType(comfy.model_base.Flux.extra_conds, model)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def merged(weights: Weights, lora: Weights) -> Weights:
    """diffusers' weights with B·A added: what a LoRA with alpha / rank folded into B means."""
    result = dict(weights)
    for name in lora:
        if name.endswith(".lora_A.weight"):
            key = name.removeprefix("transformer.").removesuffix(".lora_A.weight") + ".weight"
            up = lora[name.replace(".lora_A.", ".lora_B.")]
            result[key] = weights[key] + up.float() @ lora[name].float()
    return result
