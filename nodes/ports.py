"""The graph's CLIP and VAE as text encoder and image codec of the trainer, so that training encodes texts and images as
inference in the same graph does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from comfy.taesd.taesd import TAESD

from ..trainer.errors import BadInput
from ..trainer.families.info import ComfyPorts, FamilyInfo
from ..trainer.models.types import Ports, TextConditioning
from .host import unload

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

SAMPLED_VALUES = 8
"""Values of each tensor in a fingerprint. A judgement: trainings and patches change nearly all values of a tensor."""


def connect(info: FamilyInfo, clip: CLIP, vae: VAE) -> Ports:
    """Wrap a graph's CLIP and VAE as ports of a family. Raises BadInput for one that belongs to another model."""
    expected, faults = info.comfyui, []
    if not _fits_text(expected, clip):
        faults.append(
            f"clip: {type(clip.cond_stage_model).__name__} belongs to another model; use {expected.clip_loader}."
        )
    if not _fits_codec(expected, vae):
        faults.append(
            f"vae: {type(vae.first_stage_model).__name__} with {vae.latent_channels} latent channels belongs to "
            f"another model; use {expected.vae_loader}."
        )
    if faults:
        raise BadInput("\n".join(faults))
    return Ports(ComfyTextEncoder(clip, info), ComfyCodec(vae))


def _fits_text(expected: ComfyPorts, clip: CLIP) -> bool:
    tokenizers = expected.tokenizer_classes
    return expected.clip_class in _class_paths(clip.cond_stage_model) and (
        not tokenizers or _class_paths(clip.tokenizer)[0] in tokenizers
    )


def _fits_codec(expected: ComfyPorts, vae: VAE) -> bool:
    module = vae.first_stage_model
    if (vae.latent_channels, vae.latent_dim) != (expected.latent_channels, expected.latent_dims):
        return False
    # A TAESD makes previews: its latents only resemble the VAE's.
    return not isinstance(module, TAESD) and (not expected.vae_class or expected.vae_class in _class_paths(module))


def _class_paths(value: object) -> list[str]:
    """`module.Class` of a value's class and of its bases, in method resolution order."""
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__]


class ComfyTextEncoder:
    """A CLIP as TextEncoder, as CLIPTextEncode uses it, or TextEncodeQwenImageEdit and TextEncodeQwenImageEditPlus if
    the text sees the controls."""

    def __init__(self, clip: CLIP, info: FamilyInfo) -> None:
        self.clip = clip
        self.sees_control = info.sees_control
        self.has_pooled_output = info.comfyui.has_pooled_output
        self.picture, self.template = info.comfyui.picture, info.comfyui.template
        self.module: torch.nn.Module = clip.cond_stage_model
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, their patches, and the tokenizer's templates and options."""
        if self._fingerprint is None:
            self._fingerprint = self._compute_fingerprint()
        return self._fingerprint

    def _compute_fingerprint(self) -> str:
        tokenizer = self.clip.tokenizer
        templates = sorted((name, text) for name, text in vars(tokenizer).items() if isinstance(text, str))
        options = (self.clip.layer_idx, sorted(self.clip.tokenizer_options.items()))
        return fingerprint_weights(self.clip.patcher, type(tokenizer).__name__, templates, options)

    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption with its control images, each [1, 3, H, W] float32 in 0..1, to float32 tensors of batch
        size 1.

        Raises BadInput for a CLIP with hooks.
        """
        # ComfyUI loads its models in inference mode, and such tensors can only be used there.
        with torch.inference_mode():
            scheduled = self.clip.encode_from_tokens_scheduled(self._tokenize(caption, controls))
        if len(scheduled) > 1:
            raise BadInput(
                "clip: has hooks, which change its patches during sampling and cannot be used in training; remove them."
            )
        prompt, extra = scheduled[0]
        conditioning = {"prompt_embeds": _trainable(prompt)}
        if self.has_pooled_output:
            conditioning["pooled_prompt_embeds"] = _trainable(extra["pooled_output"])
        return conditioning

    def _tokenize(self, caption: str, controls: Sequence[torch.Tensor]) -> Any:
        options: dict[str, Any] = {"llama_template": self.template} if self.template else {}
        if self.sees_control:
            options["images"] = [image.movedim(1, -1) for image in controls]
            caption = "".join(self.picture.format(number) for number in range(1, len(controls) + 1)) + caption
        return self.clip.tokenize(caption, **options)

    def tokenizers(self) -> dict[str, Any]:
        """The tokenizers of transformers that the CLIP's tokenizer uses, by the names of its attributes."""
        return dict(_tokenizers(self.clip.tokenizer))

    def to(self, device: torch.device | str) -> None:
        _leave(self.clip.patcher, device)


def _tokenizers(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tokenizers inside ComfyUI's tokenizer objects, which nest them in attributes."""
    if hasattr(value, "get_added_vocab"):
        yield path, value
    elif type(value).__module__.startswith("comfy."):
        for name, inner in vars(value).items():
            yield from _tokenizers(inner, f"{path}.{name}")


class ComfyCodec:
    """A VAE as ImageCodec, as VAEEncode and VAEDecode use it."""

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        self.module: torch.nn.Module = vae.first_stage_model
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, their patches, and the dtype of the computation."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_weights(self.vae.patcher, self.vae.vae_dtype)
        return self._fingerprint

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, H, W] float in -1..1 to latents [B, C, h, w] float32."""
        with torch.inference_mode():
            images = ((pixels.float() + 1) / 2).movedim(1, -1)
            # One at a time, because a video VAE treats a batch as frames.
            latents = torch.cat([self.vae.encode(image) for image in images.split(1)])
            return _trainable(latents.squeeze(2) if latents.ndim == 5 else latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, h, w] of any float dtype to [B, 3, H, W] float32 in -1..1."""
        with torch.inference_mode():
            images = self.vae.decode(latents.unsqueeze(2) if self.vae.latent_dim == 3 else latents)
            images = images.squeeze(1) if images.ndim == 5 else images
            return _trainable(2 * images.movedim(-1, 1) - 1)

    def for_batches(self) -> None:
        """None: ComfyUI splits batches by free memory, or treats them as frames, so latents would differ from run to
        run."""
        return None

    def to(self, device: torch.device | str) -> None:
        _leave(self.vae.patcher, device)


def _leave(patcher: Any, device: torch.device | str) -> None:
    """Unload a model for the CPU; to the device ComfyUI moves its models itself when they are used."""
    if torch.device(device).type == "cpu":
        unload(patcher)


def _trainable(tensor: torch.Tensor) -> torch.Tensor:
    """A float32 copy that, unlike an inference tensor, autograd accepts."""
    with torch.inference_mode(False):
        return tensor.float().clone()


def fingerprint_weights(patcher: ModelPatcher, *extra: object) -> str:
    """Hexadecimal digest of a model's weights without patches, of its patches, and of `extra`.

    A tensor is represented by its name, shape, dtype and a few evenly spaced values.
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
    """The tensors and numbers of a patch, which may be nested in tuples and adapter objects."""
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
    # ComfyUI's quantized tensors wrap the quantized values.
    stored = getattr(value, "_qdata", value).detach()
    if stored.numel():
        bits = stored.view(torch.uint8) if stored.element_size() == 1 else stored
        places = torch.linspace(0, bits.numel() - 1, SAMPLED_VALUES).long().to(bits.device)
        values = bits[torch.unravel_index(places, bits.shape)] if bits.ndim else bits
        digest.update(repr(values.double().tolist()).encode())
