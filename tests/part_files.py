"""Text encoders and VAEs of both families, small and random: as a folder in diffusers' layout, and the same weights as
the single files that ComfyUI's users have, with a folder laid out like a ComfyUI installation for the tokenizers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from trainer.families.records import CONFIGS, EMBEDDED
from trainer.models.flux2_single_file import CHAT_TEMPLATE
from trainer.models.model_files import ModelFiles
from trainer.models.qwen_processor import make_processor
from trainer.tiny.tokenizers import klein_tokenizer

from .single_files import FLUX, KLEIN, QWEN, Tensors, stored

TEXT_WIDTH = 128


@dataclass(frozen=True)
class Small:
    """A model in both forms."""

    base_model: str
    folder: Path
    files: ModelFiles


def small_flux(place: Path) -> Small:
    """CLIP and T5, a VAE with the published one's blocks at a quarter of its width, two blocks of transformer."""
    torch.manual_seed(0)
    tiny = EMBEDDED / "flux-kontext"
    clip = CLIPTextConfig(
        vocab_size=1008,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        eos_token_id=2,
        projection_dim=64,
    )
    t5 = T5Config(
        vocab_size=1100,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(CONFIGS / "flux-kontext", subfolder="scheduler"),
        vae=AutoencoderKL.from_config(_config("flux-kontext/vae") | {"block_out_channels": [32, 64, 64, 64]}),
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer.from_pretrained(tiny / "tokenizer"),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast.from_pretrained(tiny / "tokenizer_2"),
        transformer=FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=1,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=64,
            guidance_embeds=True,
        ),
    )
    folder = _save(pipeline, place)
    comfyui = _comfyui(place, {"comfy/sd1_tokenizer": "tokenizer", "comfy/text_encoders/t5_tokenizer": "tokenizer_2"})
    return Small(
        FLUX,
        folder,
        ModelFiles(
            transformer=_file(place / "flux1-kontext.safetensors", stored(FLUX, pipeline.transformer)),
            vae=_file(place / "ae.safetensors", ldm_names(pipeline.vae.state_dict())),
            text_encoder=_file(place / "clip_l.safetensors", clip_names(pipeline.text_encoder.state_dict())),
            text_encoder_2=_file(place / "t5xxl.safetensors", dict(pipeline.text_encoder_2.state_dict())),
            tokenizers=comfyui,
        ),
    )


def small_qwen(place: Path) -> Small:
    """Qwen2.5-VL of one head, a VAE with the published one's blocks at 1/12 of its width, one transformer block."""
    torch.manual_seed(0)
    tokenizer = Qwen2Tokenizer.from_pretrained(EMBEDDED / "qwen-image-edit" / "tokenizer")
    config = _config("qwen-image-edit/text_encoder")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    config["text_config"] |= sizes | {"hidden_size": TEXT_WIDTH, "intermediate_size": 96}
    config["vision_config"] |= {"depth": 1, "hidden_size": 80, "num_heads": 1, "intermediate_size": 60}
    config["vision_config"] |= {"out_hidden_size": TEXT_WIDTH}
    for name in ("vision_start", "vision_end", "image", "video"):
        token = name if name.startswith("vision") else f"{name}_pad"
        config[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|{token}|>")
    pipeline = QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(CONFIGS / "qwen-image-edit", subfolder="scheduler"),
        vae=AutoencoderKLQwenImage.from_config(_config("qwen-image-edit/vae") | {"base_dim": 8}),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)),
        tokenizer=tokenizer,
        processor=make_processor(tokenizer),
        transformer=QwenImageTransformer2DModel(
            num_layers=1, num_attention_heads=1, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(16, 56, 56)
        ),
    )
    folder = _save(pipeline, place)
    return Small(
        QWEN,
        folder,
        ModelFiles(
            transformer=_file(place / "qwen_image_edit.safetensors", stored(QWEN, pipeline.transformer)),
            vae=_file(place / "qwen_image_vae.safetensors", wan_names(pipeline.vae.state_dict())),
            text_encoder=_file(place / "qwen_2.5_vl.safetensors", qwen_names(pipeline.text_encoder.state_dict())),
            tokenizers=_comfyui(place, {"comfy/text_encoders/qwen25_tokenizer": "tokenizer"}),
        ),
    )


def small_klein(place: Path) -> Small:
    """Qwen3 of 28 small layers, a VAE with the published one's blocks at a quarter of its width, three blocks of
    transformer."""
    torch.manual_seed(0)
    tokenizer = klein_tokenizer(CHAT_TEMPLATE)
    sizes = {"num_hidden_layers": 28, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    sizes |= {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    widths = [32, 64, 64, 64]
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(CONFIGS / "flux2-klein", subfolder="scheduler"),
        vae=AutoencoderKLFlux2.from_config(_config("flux2-klein/vae") | {"block_out_channels": widths}),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_config("flux2-klein/text_encoder") | sizes)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            num_layers=1, num_single_layers=2, num_attention_heads=1, joint_attention_dim=192, guidance_embeds=False
        ),
    )
    pipeline.vae.bn.running_mean.normal_()
    pipeline.vae.bn.running_var.uniform_(0.5, 1.5)
    folder = _save(pipeline, place)
    encoder = {name: tensor for name, tensor in pipeline.text_encoder.state_dict().items() if name != "lm_head.weight"}
    return Small(
        KLEIN,
        folder,
        ModelFiles(
            transformer=_file(place / "flux-2-klein-base-4b.safetensors", stored(KLEIN, pipeline.transformer)),
            vae=_file(place / "flux2-vae.safetensors", flux2_names(pipeline.vae.state_dict())),
            text_encoder=_file(place / "qwen_3_4b.safetensors", encoder),
            tokenizers=_comfyui(place, {"comfy/text_encoders/qwen25_tokenizer": "tokenizer"}),
        ),
    )


def flux2_names(state: Tensors) -> Tensors:
    """Black Forest Labs' names of the tensors of FLUX.2's VAE, which has the outer convolutions in its halves."""
    inner = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    named = ldm_names(state).items()
    return {name.replace(part, inner.get(part, part), 1): t for name, t in named for part in [name.partition(".")[0]]}


def clip_names(state: Tensors) -> Tensors:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def qwen_names(state: Tensors) -> Tensors:
    """As ComfyUI's classes name them."""
    short = {
        name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual.") for name in state
    }
    return {short[name]: tensor for name, tensor in state.items()}


def ldm_names(state: Tensors) -> Tensors:
    """Black Forest Labs' names of a VAE's tensors."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    result = {}
    for name, tensor in state.items():
        stored_name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        for own, theirs in attention.items():
            stored_name = stored_name.replace(f"mid_block.attentions.0.{own}.", f"mid.attn_1.{theirs}.")
        if ".attn_1." in stored_name and tensor.dim() == 2:
            tensor = tensor[..., None, None]
        stored_name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", stored_name)
        stored_name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", stored_name)
        stored_name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block.", stored_name)
        stored_name = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample.", stored_name
        )
        stored_name = stored_name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        result[stored_name] = tensor
    return result


def wan_names(state: Tensors) -> Tensors:
    """Wan's names of a VAE's tensors."""
    leaves = [f"residual.{n}.{leaf}" for n in (0, 2, 3, 6) for leaf in ("gamma", "weight", "bias")]
    leaves += [f"{n}.{leaf}" for n in ("shortcut", "resample.1", "time_conv") for leaf in ("weight", "bias")]
    names = [
        f"{half}.{n}.{leaf}"
        for half in ("encoder.downsamples", "decoder.upsamples")
        for n in range(15)
        for leaf in leaves
    ]
    for half in ("encoder", "decoder"):
        names += [f"{half}.middle.{n}.{leaf}" for n in (0, 2) for leaf in leaves]
        names += [
            f"{half}.middle.1.{n}"
            for n in ("norm.gamma", *(f"{m}.{x}" for m in ("to_qkv", "proj") for x in ("weight", "bias")))
        ]
        names += [f"{half}.{n}" for n in ("conv1.weight", "conv1.bias", "head.0.gamma", "head.2.weight", "head.2.bias")]
    names += ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    own = {converted: name for name, converted in zip(names, _renamed(names), strict=True)}
    return {own[name]: tensor for name, tensor in state.items()}


def _renamed(names: list[str]) -> list[str]:
    return [next(iter(convert_wan_vae_to_diffusers({name: name}))) for name in names]


def _config(path: str) -> dict:
    return json.loads((CONFIGS / path / "config.json").read_text())


def _save(pipeline: object, place: Path) -> Path:
    folder = place / "folder"
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                # Norms, biases and positions that are all alike would hide a mix-up.
                if parameter.dim() == 1:
                    torch.nn.init.normal_(parameter.data, 1.0, 0.1)
    pipeline.save_pretrained(folder)
    return folder


def _file(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def _comfyui(place: Path, tokenizers: dict[str, str]) -> Path:
    for folder, own in tokenizers.items():
        shutil.copytree(place / "folder" / own, place / "ComfyUI" / folder)
    return place / "ComfyUI"
