"""VAEs of the embedded models: their architecture and training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage, QwenImageCausalConv3d
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from PIL import Image

    Vae = AutoencoderKL | AutoencoderKLFlux2 | AutoencoderKLQwenImage


LATENT_CHANNELS = 16
"""Latent channels of both real models."""


KL_WEIGHT = 1e-5
"""Weight of the mean KL divergence against the mean squared error of pixels in -1..1: keeps the latents smooth. A
judgement."""


MUON_RATE = 0.02
"""Peak learning rate of Muon: its author's default."""


ADAM_RATE = 2e-3
"""Peak learning rate of Adam. A judgement."""


WARMUP = 50
"""Steps of warm-up. A judgement."""


class Report(NamedTuple):
    """Progress of a training."""

    step: int
    loss: float
    psnr: float
    """PSNR of this step's batch with sampled latents, in dB."""


def flux_vae() -> AutoencoderKL:
    """Build Flux's AutoencoderKL: no quantization convolutions, latents of 16 channels at an eighth of the side."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    # diffusers types these as tuples of one.
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 16, 48, 64),
    }
    return AutoencoderKL(
        **config,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """Build Qwen-Image's video VAE; images are videos of one frame."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

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


def flux2_vae(trained: AutoencoderKL) -> AutoencoderKLFlux2:
    """Build FLUX.2's VAE from Flux's trained one, with its 16 latent channels, of the same latents and images. The
    published one has 32, whose noise alone would fill the tiny transformer's width."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    shared = ("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "norm_num_groups")
    config: dict[str, Any] = {name: trained.config[name] for name in shared}
    vae = AutoencoderKLFlux2(**config, latent_channels=LATENT_CHANNELS, mid_block_add_attention=False, sample_size=64)
    weights = {name: tensor.float() for name, tensor in trained.state_dict().items()}
    vae.load_state_dict({**vae.state_dict(), **weights})
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        assert convolution is not None
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(cast("torch.Tensor", convolution.bias))
    return vae.eval()


@torch.no_grad()
def measure_batch_norm(vae: AutoencoderKLFlux2, pixels: torch.Tensor) -> None:
    """Set the statistics of the VAE's batch norm to those of its latents of uint8 `pixels` [N, 3, H, W]."""
    latents = torch.cat([encode(vae, part) for part in pixels.split(100)])
    patches = functional.pixel_unshuffle(latents, 2).transpose(0, 1).flatten(1)
    assert vae.bn.running_mean is not None and vae.bn.running_var is not None
    vae.bn.running_mean.copy_(patches.mean(1))
    vae.bn.running_var.copy_(patches.var(1))


def to_pixels(images: Iterable[Image.Image]) -> torch.Tensor:
    """Stack RGB images of one size to uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def encode(vae: Vae, pixels: torch.Tensor) -> torch.Tensor:
    """Encode uint8 pixels [B, 3, H, W] to latent modes [B, 16, H/8, W/8] float32, not normalized."""
    with torch.no_grad(), single_frames():
        return _squeeze(_posterior(vae, _scaled(pixels)).mode())


def reconstruction_psnr(vae: Vae, pixels: torch.Tensor) -> float:
    """Mean PSNR in dB of encoding and decoding uint8 pixels [B, 3, H, W]."""
    with torch.no_grad(), single_frames():
        back = _decode(vae, _unsqueeze(vae, encode(vae, pixels))).clamp(-1, 1)
    error = (back - _scaled(pixels)).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error)).mean().item()


def train_vae(
    vae: Vae, pixels: torch.Tensor, *, steps: int, batch_size: int, seed: int, decoder_only: bool = False
) -> Iterator[Report]:
    """Train in place on uint8 pixels [N, 3, H, W] with a cosine schedule, yielding a report after every step.

    `decoder_only` freezes the encoder. Matrices and kernels are trained with Muon, norms and biases with Adam.
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
        vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (missing in the stubs)
    for step in range(1, steps + 1):
        rate = peak * min(1.0, step / WARMUP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        images = _scaled(pixels[torch.randint(len(pixels), (batch_size,), generator=generator)])
        with single_frames():
            with torch.set_grad_enabled(not decoder_only):
                posterior = _posterior(vae, images)
            noise = peak * torch.randn(posterior.mean.shape, generator=generator)
            decoded = _decode(vae, posterior.mean + posterior.std * noise)
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
def _muon_step(parameters: Sequence[torch.Tensor], momenta: list[torch.Tensor], rate: float) -> None:
    """Muon step: each matrix's momentum with its singular values made about 1 (Newton-Schulz, Keller Jordan 2024)."""
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
    """Context in which Qwen's causal 3D convolutions take videos of one frame and skip the two padding frames.

    The results are the same, in a third of the time.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    usual = QwenImageCausalConv3d.forward
    QwenImageCausalConv3d.forward = _single_frame_convolution
    try:
        yield
    finally:
        QwenImageCausalConv3d.forward = usual


def _single_frame_convolution(
    self: QwenImageCausalConv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None
) -> torch.Tensor:
    assert x.shape[2] == 1 and cache_x is None
    across, down = int(self._padding[0]), int(self._padding[2])
    kernel, stride = self.weight[:, :, -1], self.stride[1:]
    return functional.conv2d(x[:, :, 0], kernel, self.bias, stride, (down, across)).unsqueeze(2)


def drop_empty_taps(vae: Vae) -> None:
    """Set weights to zero that only videos of several frames use, which training never sees."""
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "time_conv" in name:
                parameter.zero_()
            elif parameter.ndim == 5:
                parameter[:, :, :-1] = 0


def _posterior(vae: Vae, images: torch.Tensor) -> DiagonalGaussianDistribution:
    """Encode images [B, 3, H, W] float32 in -1..1."""
    return cast("AutoencoderKLOutput", vae.encode(_unsqueeze(vae, images))).latent_dist


def _decode(vae: Vae, latents: torch.Tensor) -> torch.Tensor:
    """Decode the VAE's own latents, with a frame axis for a video VAE, to images [B, 3, H, W] float32."""
    decoded = vae.decode(latents)  # pyright: ignore[reportArgumentType] (mistyped as FloatTensor)
    return _squeeze(cast("DecoderOutput", decoded).sample)


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _is_video(vae: Vae) -> bool:
    return hasattr(vae.config, "z_dim")


def _unsqueeze(vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """A frame axis for a video VAE."""
    return images.unsqueeze(2) if _is_video(vae) else images


def _squeeze(images: torch.Tensor) -> torch.Tensor:
    return images.squeeze(2) if images.ndim == 5 else images
