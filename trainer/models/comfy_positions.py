"""Where ComfyUI's Qwen-Image sees its tokens: not where diffusers' does, for odd grids and for the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

FrameGrid = tuple[int, int, int]
"""Frames (1), token rows and columns of an image."""


class ComfyQwenRope(QwenEmbedRope):
    """In the place of a QwenImageTransformer2DModel's `pos_embed`. An odd number of rows or columns has its middle one
    at 0, and the text begins where the target ends, however large its controls are."""

    def forward(
        self,
        video_fhw: Sequence[Sequence[FrameGrid]],
        max_txt_seq_len: int,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Complex rotations of the image tokens and of the text tokens; the batch's first example stands for all."""
        images = torch.cat([image_positions(grid, index) for index, grid in enumerate(video_fhw[0])])
        text = text_positions(video_fhw[0][0], int(max_txt_seq_len))
        return self._rotations(images, device), self._rotations(text, device)

    def _rotations(self, positions: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        axes = zip(positions.unbind(-1), self.axes_dim, strict=True)
        return torch.cat([self.rope_params(axis, dim, self.theta) for axis, dim in axes], dim=-1).to(device)


def image_positions(grid: FrameGrid, index: int) -> torch.Tensor:
    """[rows * columns, 3]: which image (0 is the target), row and column of its tokens."""
    _, height, width = grid
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    return torch.stack(torch.meshgrid(torch.tensor([index]), rows, columns, indexing="ij"), dim=-1).reshape(-1, 3)


def text_positions(target: FrameGrid, length: int) -> torch.Tensor:
    """[length, 3]: the same on every axis, from the end of the target on."""
    start = max(target[1] // 2, target[2] // 2)
    return torch.arange(start, start + length)[:, None].expand(length, 3)
