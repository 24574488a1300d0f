"""The graph's CLIP and VAE as the trainer's ports: what is trained on is encoded by what inference encodes with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import TAESD
from comfy.text_encoders.flux import FluxClipModel
from comfy.text_encoders.qwen_image import QwenImageTEModel, QwenImageTokenizer

from ..trainer.errors import BadInput
from ..trainer.models.types import Ports, TextConditioning
from .host import unload

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

LATENT_CHANNELS = 16
SAMPLED_VALUES = 8
"""Values of a tensor that stand for all of it."""
CLIP_LOADERS = {
    "flux-kontext": 'DualCLIPLoader with clip_l and t5xxl, type "flux"',
    "qwen-image-edit": 'CLIPLoader with qwen_2.5_vl_7b, type "qwen_image"',
}
VAE_LOADERS = {
    "flux-kontext": "VAELoader with Flux's VAE (ae.safetensors)",
    "qwen-image-edit": "VAELoader with Qwen-Image's VAE (qwen_image_vae.safetensors)",
}


def connect(family: str, clip: CLIP, vae: VAE) -> Ports:
    """The two as ports of a family. Raises BadInput for one that is another model's."""
    faults = []
    if not _fits_text(family, clip):
        faults.append(f"clip: {type(clip.cond_stage_model).__name__} is another model's; use {CLIP_LOADERS[family]}.")
    if not _fits_codec(family, vae):
        faults.append(
            f"vae: {type(vae.first_stage_model).__name__} with {vae.latent_channels} latent channels is another "
            f"model's; use {VAE_LOADERS[family]}."
        )
    if faults:
        raise BadInput("\n".join(faults))
    return Ports(ComfyTextEncoder(clip, sees_control=family == "qwen-image-edit"), ComfyCodec(vae))


def _fits_text(family: str, clip: CLIP) -> bool:
    if family == "flux-kontext":
        return isinstance(clip.cond_stage_model, FluxClipModel)
    # Other models derive their text encoders from Qwen-Image's, with templates of their own.
    return isinstance(clip.cond_stage_model, QwenImageTEModel) and type(clip.tokenizer) is QwenImageTokenizer


def _fits_codec(family: str, vae: VAE) -> bool:
    dimensions = 2 if family == "flux-kontext" else 3
    if vae.latent_channels != LATENT_CHANNELS or vae.latent_dim != dimensions:
        return False
    module = vae.first_stage_model
    return isinstance(module, WanVAE) if dimensions == 3 else not isinstance(module, TAESD)


class ComfyTextEncoder:
    """A TextEncoder that is a CLIP: CLIPTextEncode, or TextEncodeQwenImageEdit where the text sees the control."""

    def __init__(self, clip: CLIP, sees_control: bool) -> None:
        self.clip = clip
        self.sees_control = sees_control
        self.module: torch.nn.Module = clip.cond_stage_model

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights, the patches on them, and how text becomes tokens."""
        tokenizer = self.clip.tokenizer
        templates = sorted((name, text) for name, text in vars(tokenizer).items() if isinstance(text, str))
        options = (self.clip.layer_idx, sorted(self.clip.tokenizer_options.items()))
        return fingerprint_weights(self.clip.patcher, type(tokenizer).__name__, templates, options)

    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        # ComfyUI runs its models in inference mode, and what it has loaded may only be used there.
        with torch.inference_mode():
            seen = {"images": [image.movedim(1, -1) for image in controls]} if self.sees_control else {}
            scheduled = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption, **seen))
        if len(scheduled) > 1:
            raise BadInput(
                "clip: its patches change during sampling (hooks), which training does not know; remove them."
            )
        prompt, extra = scheduled[0]
        if self.sees_control:
            return {"prompt_embeds": _trainable(prompt)}
        return {"prompt_embeds": _trainable(prompt), "pooled_prompt_embeds": _trainable(extra["pooled_output"])}

    def to(self, device: torch.device | str) -> None:
        _leave(self.clip.patcher, device)


class ComfyCodec:
    """An ImageCodec that is a VAE: VAEEncode and VAEDecode."""

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        self.module: torch.nn.Module = vae.first_stage_model

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights, the patches on them, and the number format of the computation."""
        return fingerprint_weights(self.vae.patcher, self.vae.vae_dtype)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            images = ((pixels.float() + 1) / 2).movedim(1, -1)
            # One by one: a video VAE would take several for frames.
            latents = torch.cat([self.vae.encode(image) for image in images.split(1)])
            return _trainable(latents.squeeze(2) if latents.ndim == 5 else latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            images = self.vae.decode(latents.unsqueeze(2) if self.vae.latent_dim == 3 else latents)
            images = images.squeeze(1) if images.ndim == 5 else images
            return _trainable(2 * images.movedim(-1, 1) - 1)

    def for_batches(self) -> None:
        """ComfyUI takes several apart by the memory that is free at the moment, or for frames: latents would differ
        from one run to the next."""

    def to(self, device: torch.device | str) -> None:
        _leave(self.vae.patcher, device)


def _leave(patcher: Any, device: torch.device | str) -> None:
    """ComfyUI brings its models to the device itself when they are used; only away from it they are sent."""
    if torch.device(device).type == "cpu":
        unload(patcher)


def _trainable(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is no inference tensor, which could not be trained on."""
    with torch.inference_mode(False):
        return tensor.float().clone()


def fingerprint_weights(patcher: ModelPatcher, *extra: object) -> str:
    """A hexadecimal digest of a model's weights as they are without patches, of its patches, and of `extra`.

    Of every tensor its name, shape, dtype and a few evenly spaced values count.
    """
    model = patcher.model
    digest = hashlib.sha256(repr((type(model).__name__, extra)).encode())
    with torch.inference_mode():
        for name, tensor in sorted(chain(model.named_parameters(), model.named_buffers()), key=lambda item: item[0]):
            kept = patcher.backup.get(name)
            _update(digest, name, tensor if kept is None else kept.weight)
        for name in sorted(patcher.patches):
            for strength, patch, model_strength, *_ in patcher.patches[name]:
                for part in _parts(patch):
                    _update(digest, f"{name} {strength} {model_strength}", part)
    return digest.hexdigest()[:32]


def _parts(patch: Any) -> Iterator[Any]:
    """The tensors and numbers of a patch, which are nested in tuples and in adapter objects."""
    if isinstance(patch, list | tuple):
        for part in patch:
            yield from _parts(part)
    elif hasattr(patch, "weights"):
        yield type(patch).__name__
        yield from _parts(patch.weights)
    elif not callable(patch):
        yield patch


def _update(digest: hashlib._Hash, name: str, value: Any) -> None:
    digest.update(f"{name}\0".encode())
    if not isinstance(value, torch.Tensor):
        digest.update(repr(value).encode())
        return
    digest.update(f"{tuple(value.shape)} {value.dtype}\0".encode())
    # ComfyUI's quantized weights have their codes inside.
    stored = getattr(value, "_qdata", value).detach()
    if stored.numel():
        bits = stored.view(torch.uint8) if stored.element_size() == 1 else stored
        places = torch.linspace(0, bits.numel() - 1, SAMPLED_VALUES).long().to(bits.device)
        values = bits[torch.unravel_index(places, bits.shape)] if bits.ndim else bits
        digest.update(repr(values.double().tolist()).encode())
