"""Records of the supported model families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .file_kinds import (
    CLIP,
    FLUX2_TRANSFORMER,
    FLUX2_VAE,
    FLUX_TRANSFORMER,
    IMAGE_VAE,
    QWEN3,
    QWEN_TRANSFORMER,
    QWEN_VL,
    T5,
    WAN_VAE,
)
from .info import ComfyPorts, FamilyInfo, TextEncoderInfo, VaeInfo, Variant

PACKAGE = Path(__file__).parent.parent
CONFIGS = PACKAGE / "models" / "configs"
EMBEDDED = PACKAGE / "tiny"


FLUX_KONTEXT = FamilyInfo(
    name="flux-kontext",
    title="FLUX.1 Kontext",
    implementations={"diffusers": ".flux_kontext.FluxKontext", "comfyui": ".comfyui_parity.ComfyFluxKontext"},
    variants=(
        Variant(
            name="black-forest-labs/FLUX.1-Kontext-dev",
            download_gb=34,
            resolution=1024,
            max_sample_resolution=2048,
            text_length=512,
            sample_steps=20,
            sample_guidance=2.5,
        ),
        Variant(
            name="tiny/flux-kontext",
            folder=EMBEDDED / "flux-kontext",
            resolution=64,
            max_sample_resolution=64,
            text_length=32,
            sample_steps=10,
            sample_guidance=1.0,
        ),
    ),
    configs=CONFIGS / "flux-kontext",
    pipeline_class="FluxKontextPipeline",
    subfolders={
        "transformer": ("transformer",),
        "vae": ("vae",),
        "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    },
    license={
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "https://huggingface.co/{base_model}/blob/main/LICENSE.md",
    },
    max_controls=1,
    sees_control=False,
    uses_negative_prompt=False,
    transformer=FLUX_TRANSFORMER,
    name_hint="kontext",
    lookalike_names="krea",
    text_encoders={
        "text_encoder": TextEncoderInfo("CLIP-L text encoder", CLIP),
        "text_encoder_2": TextEncoderInfo("T5-XXL text encoder", T5),
    },
    vae=VaeInfo("VAE of Flux", IMAGE_VAE),
    lora_title="Flux",
    lora_modules=r"(double|single)_blocks[._]\d|single_transformer_blocks[._]\d",
    comfyui=ComfyPorts(
        clip_loader='DualCLIPLoader with clip_l and t5xxl, type "flux"',
        clip_class="comfy.text_encoders.flux.FluxClipModel",
        has_pooled_output=True,
        vae_loader="VAELoader with Flux's VAE (ae.safetensors)",
        latent_channels=16,
        latent_dims=2,
    ),
)


QWEN_IMAGE_EDIT = FamilyInfo(
    name="qwen-image-edit",
    title="Qwen-Image-Edit",
    implementations={"diffusers": ".qwen_image_edit.QwenImageEdit", "comfyui": ".comfyui_parity.ComfyQwenImageEdit"},
    variants=(
        Variant(
            name="Qwen/Qwen-Image-Edit",
            download_gb=58,
            resolution=1024,
            max_sample_resolution=2048,
            text_length=512,
            sample_steps=20,
            sample_guidance=4.0,
        ),
        Variant(
            name="tiny/qwen-image-edit",
            folder=EMBEDDED / "qwen-image-edit",
            resolution=64,
            max_sample_resolution=64,
            text_length=32,
            sample_steps=10,
            sample_guidance=1.0,
        ),
    ),
    configs=CONFIGS / "qwen-image-edit",
    pipeline_class="QwenImageEditPipeline",
    guidance_arguments='negative_prompt=" ", true_cfg_scale={guidance}',
    subfolders={
        "transformer": ("transformer",),
        "vae": ("vae",),
        "text": ("text_encoder", "tokenizer", "processor"),
    },
    license={"license": "apache-2.0"},
    max_controls=1,
    needs_control=True,
    sees_control=True,
    uses_negative_prompt=True,
    transformer=QWEN_TRANSFORMER,
    name_hint="edit",
    lookalike_names="2509|2511|2512|firered|layered|plus",
    text_encoders={"text_encoder": TextEncoderInfo("Qwen2.5-VL text encoder", QWEN_VL)},
    vae=VaeInfo("VAE of Qwen-Image", WAN_VAE, lookalike_names="wan"),
    lora_title="Qwen-Image",
    lora_modules=r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)[._]",
    comfyui=ComfyPorts(
        clip_loader='CLIPLoader with qwen_2.5_vl_7b, type "qwen_image"',
        clip_class="comfy.text_encoders.qwen_image.QwenImageTEModel",
        # Other models derive their text encoders from Qwen-Image's, with templates of their own.
        tokenizer_classes=("comfy.text_encoders.qwen_image.QwenImageTokenizer",),
        has_pooled_output=False,
        vae_loader="VAELoader with Qwen-Image's VAE (qwen_image_vae.safetensors)",
        vae_class="comfy.ldm.wan.vae.WanVAE",
        latent_channels=16,
        latent_dims=3,
    ),
)


QWEN_IMAGE_EDIT_PLUS = replace(
    QWEN_IMAGE_EDIT,
    name="qwen-image-edit-plus",
    title="Qwen-Image-Edit-2509/2511",
    implementations={
        "diffusers": ".qwen_image_edit_plus.QwenImageEditPlus",
        "comfyui": ".qwen_image_edit_plus.ComfyQwenImageEditPlus",
    },
    variants=(
        replace(
            QWEN_IMAGE_EDIT.variant("Qwen/Qwen-Image-Edit"),
            name="Qwen/Qwen-Image-Edit-2509",
            sample_steps=20,
            sample_guidance=4.0,
            name_hint="2509",
            lookalike_names="2511|2512|layered",
        ),
        replace(
            QWEN_IMAGE_EDIT.variant("Qwen/Qwen-Image-Edit"),
            name="Qwen/Qwen-Image-Edit-2511",
            sample_steps=40,
            sample_guidance=3.0,
            options=frozenset({"zero_cond_t"}),
            marker="__index_timestep_zero__",
            name_hint="2511",
            lookalike_names="2509|2512|firered|layered",
        ),
        # Of 2511's make, which has everything that 2509's has and timestep 0 for the controls besides.
        replace(
            QWEN_IMAGE_EDIT.variant("tiny/qwen-image-edit"),
            name="tiny/qwen-image-edit-plus",
            folder=EMBEDDED / "qwen-image-edit-plus",
            shared_folder="qwen-image-edit",
            options=frozenset({"zero_cond_t"}),
        ),
    ),
    configs=CONFIGS / "qwen-image-edit-plus",
    pipeline_class="QwenImageEditPlusPipeline",
    max_controls=3,
    needs_control=False,
    comfyui=replace(
        QWEN_IMAGE_EDIT.comfyui,
        # As TextEncodeQwenImageEditPlus has them.
        picture="Picture {}: <|vision_start|><|image_pad|><|vision_end|>",
        template=(
            "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
            "background), then explain how the user's text instruction should alter or modify the image. Generate a "
            "new image that meets the user's requirements while maintaining consistency with the original input where "
            "appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
)


_KLEIN_4B = Variant(
    name="black-forest-labs/FLUX.2-klein-base-4B",
    configs=CONFIGS / "flux2-klein",
    license={"license": "apache-2.0"},
    download_gb=16,
    resolution=1024,
    max_sample_resolution=2048,
    text_length=512,
    sample_steps=20,
    sample_guidance=5.0,
)


FLUX2_KLEIN = FamilyInfo(
    name="flux2-klein",
    title="FLUX.2 [klein]",
    implementations={"diffusers": ".flux2_klein.Flux2Klein", "comfyui": ".flux2_klein.ComfyFlux2Klein"},
    variants=(
        _KLEIN_4B,
        replace(
            _KLEIN_4B,
            name="black-forest-labs/FLUX.2-klein-base-9B",
            configs=CONFIGS / "flux2-klein-9b",
            license={
                "license": "other",
                "license_name": "flux-non-commercial-license",
                "license_link": "https://huggingface.co/{base_model}/blob/main/LICENSE.md",
            },
            download_gb=35,
        ),
        Variant(
            name="tiny/flux2-klein",
            folder=EMBEDDED / "flux2-klein",
            resolution=64,
            max_sample_resolution=64,
            text_length=32,
            sample_steps=10,
            sample_guidance=1.0,
        ),
    ),
    configs=CONFIGS / "flux2-klein",
    pipeline_class="Flux2KleinPipeline",
    subfolders={"transformer": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "tokenizer")},
    max_controls=3,
    sees_control=False,
    uses_negative_prompt=True,
    transformer=FLUX2_TRANSFORMER,
    name_hint="klein",
    lookalike_names="dev",
    distilled_entry="is_distilled",
    distilled_names=r"klein(?!.*base)",
    text_encoders={"text_encoder": TextEncoderInfo("Qwen3 text encoder", QWEN3)},
    vae=VaeInfo("VAE of FLUX.2", FLUX2_VAE),
    lora_title="FLUX.2 [klein]",
    lora_modules=r"single_transformer_blocks[._]\d+[._]attn[._]to_(qkv_mlp_proj|out)|ff(_context)?[._]linear_(in|out)",
    comfyui=ComfyPorts(
        clip_loader='CLIPLoader with qwen_3_4b, or qwen_3_8b for the 9B, type "flux2"',
        clip_class="comfy.text_encoders.flux.Flux2TEModel",
        # FLUX.2 [dev]'s text encoder has the same class.
        tokenizer_classes=("comfy.text_encoders.flux.KleinTokenizer", "comfy.text_encoders.flux.KleinTokenizer8B"),
        has_pooled_output=False,
        vae_loader="VAELoader with FLUX.2's VAE (flux2-vae.safetensors)",
        vae_class="comfy.ldm.models.autoencoder.AutoencoderKL",
        latent_channels=128,
        latent_dims=2,
    ),
)
