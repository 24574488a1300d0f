"""Qwen-Image's video VAE for pictures: as the pipeline uses it, and for many at once."""

from __future__ import annotations

import copy
import itertools

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.nn import functional as F

from .pipelines import PipelineCodec


class QwenCodec(PipelineCodec):
    """A picture is a video of one frame; the frame axis stays inside."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels.unsqueeze(2)).squeeze(2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(latents.unsqueeze(2)).squeeze(2)

    def for_batches(self) -> FirstFrameCodec:
        weights = itertools.chain(self.module.parameters(), self.module.buffers())
        vae = copy.deepcopy(self.module, {id(tensor): tensor for tensor in weights})
        return FirstFrameCodec(vae, self.module.device, self.fingerprint)


class FirstFrameCodec(QwenCodec):
    """Encodes frames that none precedes. The VAE's own `encode` keeps frames in the module for those that follow, which
    forbids a second thread, and fills the place of those before with zeros, which makes three times the work."""

    def __init__(self, vae: torch.nn.Module, device: torch.device | str, fingerprint: str) -> None:
        super().__init__(vae, device, fingerprint)
        for module in vae.encoder.modules():
            if isinstance(module, QwenImageCausalConv3d):
                module.__class__ = FirstFrameConv

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        moments = self.module.quant_conv(self.module.encoder(self._place(pixels).unsqueeze(2)))
        return DiagonalGaussianDistribution(moments).mode().squeeze(2)


class FirstFrameConv(QwenImageCausalConv3d):
    """Causal convolution of one frame: of the kernel's frames only the last meets it."""

    def forward(self, x: torch.Tensor, cache_x: None = None) -> torch.Tensor:
        """[B, C, 1, H, W] to [B, C', 1, H', W']"""
        padding = (self._padding[2], self._padding[0])
        return F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, self.stride[1:], padding).unsqueeze(2)
