"""ComfyUI's own CLIP and VAE classes at reduced size, with random weights that are always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.text_encoders.flux
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SDClipModel
from comfy.text_encoders.flux import FluxClipModel, FluxTokenizer
from comfy.text_encoders.llama import Qwen25_7BVLI
from comfy.text_encoders.qwen_image import Qwen25_7BVLIModel, QwenImageTEModel, QwenImageTokenizer
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer
from comfy.text_encoders.t5 import T5
from comfy_api.latest import io
from safetensors.torch import save_file

CPU = torch.device("cpu")
KNOWS_KLEIN = hasattr(comfy.text_encoders.flux, "KleinTokenizer")
"""True from ComfyUI 0.33 on."""
FAMILIES = ["flux-kontext", "qwen-image-edit", *(["flux2-klein"] if KNOWS_KLEIN else [])]
CLIP_L: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
T5_XXL: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_heads": 4,
    "num_layers": 2,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "vocab_size": 32128,
}
QWEN_WIDTH = 256
QWEN: dict[str, Any] = {
    "hidden_size": QWEN_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_layers": 2}
KL: dict[str, Any] = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
WAN: dict[str, Any] = {
    "dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}


class SmallFluxClip(FluxClipModel):
    def __init__(self, device="cpu", dtype=None, model_options: dict | None = None) -> None:
        torch.nn.Module.__init__(self)
        options = {"device": device, "dtype": dtype, "model_options": model_options or {}}
        self.clip_l = SDClipModel(textmodel_json_config=dict(CLIP_L), return_projected_pooled=False, **options)
        tokens = {"end": 1, "pad": 0}
        self.t5xxl = SDClipModel(textmodel_json_config=dict(T5_XXL), special_tokens=tokens, model_class=T5, **options)
        self.dtypes = {dtype}


class SmallQwenVL(Qwen25_7BVLI):
    def __init__(self, config_dict, dtype, device, operations) -> None:
        super().__init__(config_dict, dtype, torch.device("meta"), operations)
        self.to_empty(device=device)
        self.visual = Qwen2VLVisionTransformer(
            output_hidden_size=QWEN_WIDTH, device=device, dtype=dtype, ops=operations, **VISION
        )


class SmallQwenModel(Qwen25_7BVLIModel):
    def __init__(self, device="cpu", dtype=None, model_options: dict | None = None) -> None:
        SDClipModel.__init__(
            self,
            device=device,
            textmodel_json_config=dict(QWEN),
            dtype=dtype,
            special_tokens={"pad": 151643},
            layer_norm_hidden_state=False,
            model_class=SmallQwenVL,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options or {},
        )


class SmallQwenClip(QwenImageTEModel):
    """Its output is widened to what the transformer takes."""

    def __init__(self, device="cpu", dtype=None, model_options: dict | None = None, width: int = 64) -> None:
        options = model_options or {}
        SD1ClipModel.__init__(
            self, device=device, dtype=dtype, name="qwen25_7b", clip_model=SmallQwenModel, model_options=options
        )
        self.widen = torch.nn.Linear(QWEN_WIDTH, width, dtype=dtype)

    def encode_token_weights(self, token_weight_pairs):
        out, pooled, extra = super().encode_token_weights(token_weight_pairs)
        return self.widen(out), pooled, extra


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that keep signals about their size; norms start at one."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim < 2 or name.endswith("gamma"):
            values = 0.1 * values + (0 if name.endswith("bias") else 1)
        elif "embed" not in name and "shared" not in name:
            values /= parameter[0].numel() ** 0.5
        parameter.data.copy_(values)
    return module.eval().requires_grad_(False)


def reduced_clip(family: str, width: int, seed: int = 0) -> comfy.sd.CLIP:
    """A CLIP of ComfyUI's classes with ComfyUI's tokenizers; `width` of Qwen's conditioning."""
    if family == "flux2-klein":
        from .reduced_klein import KleinTokenizer, SmallKleinClip  # only where KNOWS_KLEIN

        clip, tokenizer = SmallKleinClip, KleinTokenizer
    else:
        clip, tokenizer = {
            "flux-kontext": (SmallFluxClip, FluxTokenizer),
            "qwen-image-edit": (SmallQwenClip, QwenImageTokenizer),
        }[family]
    params = {"width": width} if family == "qwen-image-edit" else {}
    target = SimpleNamespace(params=params, clip=clip, tokenizer=tokenizer)
    options = {"dtype": torch.float32, "load_device": CPU, "offload_device": CPU, "initial_device": CPU}
    clip = comfy.sd.CLIP(target, model_options=options)
    randomize(clip.cond_stage_model, seed)
    return clip


def reduced_vae(family: str, seed: int = 0) -> comfy.sd.VAE:
    """A VAE of ComfyUI's class at a small channel width."""
    if family == "qwen-image-edit":
        vae = comfy.sd.VAE(sd=randomize(WanVAE(**WAN), seed).state_dict(), dtype=torch.float32)
        vae.first_stage_model.encode = remembered(vae.first_stage_model.encode)
        return vae
    # ComfyUI builds this one with 128 channels always; a small one takes its place.
    klein = family == "flux2-klein"
    known = {"decoder.conv_in.weight": (512, 32 if klein else 16, 3, 3)}
    known |= {"encoder.down.2.downsample.conv.weight": (512, 512, 3, 3)}
    known |= {"bn.running_mean": (128,), "post_quant_conv.weight": (32, 32, 1, 1)} if klein else {}
    vae = comfy.sd.VAE(sd={name: torch.zeros(shape) for name, shape in known.items()}, dtype=torch.float32)
    vae.first_stage_model = _with_statistics(randomize(_klein_vae(KL), seed)) if klein else randomize(_engine(KL), seed)
    vae.patcher = ModelPatcher(vae.first_stage_model, load_device=CPU, offload_device=CPU)
    return vae


def remembered(encode: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Latents of the same pixels are made once: on the CPU those of a megapixel take seconds."""
    made: dict[str, torch.Tensor] = {}

    def call(pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        key = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
        if key not in made:
            made[key] = encode(pixels, **options)
        return made[key].clone()

    return call


class ReducedClip(io.ComfyNode):
    """A CLIP of the family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Combo.Input("family", options=FAMILIES),
            io.Int.Input("width", default=64, max=8192),
            io.Int.Input("seed"),
        ]
        return io.Schema(node_id="OracleReducedClip", inputs=inputs, outputs=[io.Clip.Output("clip")])

    @classmethod
    def execute(cls, family: str, width: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput(reduced_clip(family, width, seed))


class ReducedVae(io.ComfyNode):
    """A VAE of the family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("family", options=FAMILIES), io.Int.Input("seed")]
        return io.Schema(node_id="OracleReducedVae", inputs=inputs, outputs=[io.Vae.Output("vae")])

    @classmethod
    def execute(cls, family: str, seed: int) -> io.NodeOutput:
        return io.NodeOutput(reduced_vae(family, seed))


def _engine(sizes: dict[str, Any]) -> AutoencodingEngine:
    part = "comfy.ldm.modules.diffusionmodules.model."
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"{part}Encoder", "params": sizes},
        decoder_config={"target": f"{part}Decoder", "params": sizes},
    )


def _klein_vae(sizes: dict[str, Any]) -> AutoencoderKL:
    return AutoencoderKL(ddconfig=sizes | {"z_channels": 32, "batch_norm_latent": True}, embed_dim=32)


def _with_statistics(vae: AutoencoderKL) -> AutoencoderKL:
    """The VAE with means and variances that are not all alike."""
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 128))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 128))
    return vae


def full_vae(family: str) -> torch.nn.Module:
    """ComfyUI's VAE class at its full size, random."""
    if family == "qwen-image-edit":
        return randomize(WanVAE(**WAN | {"dim": 96}), 0)
    sizes = KL | {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    if family == "flux2-klein":
        return _with_statistics(randomize(_klein_vae(sizes), 0))
    return randomize(_engine(sizes), 0)


class VaeFile(io.ComfyNode):
    """Saves a VAE of the full layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("family", options=FAMILIES), io.String.Input("file")]
        return io.Schema(node_id="OracleVaeFile", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, family: str, file: str) -> io.NodeOutput:
        state = {name: tensor.contiguous() for name, tensor in full_vae(family).state_dict().items()}
        save_file(state, file)
        return io.NodeOutput()
