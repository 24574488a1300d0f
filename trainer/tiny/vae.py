"""The embedded models' VAEs: their architecture, and the short training that makes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLQwenImage
    from PIL import Image


LATENT_CHANNELS = 16


KL_WEIGHT = 1e-5
"""Weight of the mean KL divergence against the mean squared error of pixels in -1..1: keeps the latents smooth."""


MUON_RATE = 0.02


ADAM_RATE = 2e-3


WARMUP = 50


class Report(NamedTuple):
    """Progress of a VAE's training after one step."""

    step: int
    loss: float
    psnr: float
    """Mean PSNR in dB of this step's batch, decoded from sampled latents."""


def flux_vae() -> AutoencoderKL:
    """AutoencoderKL as Flux uses it: no quantization convolutions, 16 channels at an eighth of the side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """The video VAE of Qwen-Image; pictures are videos of one frame."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=12,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 3, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def to_pixels(images: Iterable[Image.Image]) -> torch.Tensor:
    """Stack RGB images of one size to uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def encode(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Encode uint8 pixels [B, 3, H, W] to the modes of their latents, float32 [B, C, h, w], not normalized."""
    with torch.no_grad(), single_frames():
        return _squeeze(vae.encode(_unsqueeze(vae, _scaled(pixels))).latent_dist.mode())


def reconstruction_psnr(vae: torch.nn.Module, pixels: torch.Tensor) -> float:
    """Mean PSNR in dB of images, uint8 [B, 3, H, W], after encoding and decoding."""
    with torch.no_grad(), single_frames():
        back = _squeeze(vae.decode(_unsqueeze(vae, encode(vae, pixels))).sample).clamp(-1, 1)
    error = (back - _scaled(pixels)).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error)).mean().item()


def train_vae(
    vae: torch.nn.Module, pixels: torch.Tensor, *, steps: int, batch_size: int, seed: int, decoder_only: bool = False
) -> Iterator[Report]:
    """Train in place on uint8 pixels [N, 3, H, W], yielding after every step. The rate falls to 0 along a cosine.

    `decoder_only` keeps the latents as they are and makes more of them.
    Matrices and kernels follow Muon, which gets further in the same time than Adam; norms and biases follow Adam.
    """
    generator = torch.Generator().manual_seed(seed)
    peak = 0.5 if decoder_only else 1.0
    vae.requires_grad_(not decoder_only)
    vae.decoder.requires_grad_(True)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    adam = torch.optim.Adam([parameter for parameter in trained if parameter.ndim <= 1], betas=(0.9, 0.99))
    momenta = [torch.zeros_like(parameter) for parameter in matrices]
    if not _is_video(vae):
        vae.to(memory_format=torch.channels_last)
    for step in range(1, steps + 1):
        rate = peak * min(1.0, step / WARMUP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        images = _scaled(pixels[torch.randint(len(pixels), (batch_size,), generator=generator)])
        with single_frames():
            with torch.set_grad_enabled(not decoder_only):
                posterior = vae.encode(_unsqueeze(vae, images)).latent_dist
            noise = peak * torch.randn(posterior.mean.shape, generator=generator)
            decoded = _squeeze(vae.decode(posterior.mean + posterior.std * noise).sample)
        error = (decoded - images).square().mean()
        divergence = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
        loss = error + KL_WEIGHT * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.param_groups[0]["lr"] = ADAM_RATE * rate
        adam.step()
        _muon_step(matrices, momenta, MUON_RATE * rate)
        vae.zero_grad()
        yield Report(step, loss.item(), 10 * math.log10(4 / error.item()))
    vae.requires_grad_(False)


@torch.no_grad()
def _muon_step(parameters: list[torch.Tensor], momenta: list[torch.Tensor], rate: float) -> None:
    """One step of Muon: the momentum of each matrix, its singular values all made about 1."""
    for parameter, momentum in zip(parameters, momenta, strict=True):
        if parameter.grad is None:
            continue
        momentum.lerp_(parameter.grad, 0.05)
        update = parameter.grad.lerp(momentum, 0.95).flatten(1)
        flip = update.shape[0] > update.shape[1]
        update = update.T if flip else update
        update = update / (update.norm() + 1e-7)
        for _ in range(5):
            gram = update @ update.T
            update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
        update = update.T if flip else update
        parameter.sub_(update.reshape(parameter.shape), alpha=rate * max(1, update.shape[0] / update.shape[1]) ** 0.5)


@contextmanager
def single_frames() -> Iterator[None]:
    """Context in which Qwen's causal 3D convolutions take videos of one frame only and skip the two padding frames.

    The result is the same, in a third of the time.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    usual = QwenImageCausalConv3d.forward
    QwenImageCausalConv3d.forward = _single_frame_convolution
    try:
        yield
    finally:
        QwenImageCausalConv3d.forward = usual


def _single_frame_convolution(conv: torch.nn.Conv3d, frames: torch.Tensor, cache_x: None = None) -> torch.Tensor:
    assert frames.shape[2] == 1 and cache_x is None
    across, _, down, *_ = conv._padding
    kernel, stride = conv.weight[:, :, -1], conv.stride[1:]
    return functional.conv2d(frames[:, :, 0], kernel, conv.bias, stride, (down, across)).unsqueeze(2)


def drop_empty_taps(vae: torch.nn.Module) -> None:
    """Zero the weights that only videos of several frames reach, which are untrained."""
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "time_conv" in name:
                parameter.zero_()
            elif parameter.ndim == 5:
                parameter[:, :, :-1] = 0


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _is_video(vae: torch.nn.Module) -> bool:
    return hasattr(vae.config, "z_dim")


def _unsqueeze(vae: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A frame axis for a video VAE."""
    return images.unsqueeze(2) if _is_video(vae) else images


def _squeeze(images: torch.Tensor) -> torch.Tensor:
    return images.squeeze(2) if images.ndim == 5 else images
