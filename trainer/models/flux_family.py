"""Common part of FLUX.1 Kontext and FLUX.2 [klein]: texts with padding that the transformer attends to, and plain
guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .diffusers_family import PipelineFamily
from .types import TextConditioning


class FluxFamily(PipelineFamily):
    """A family of Black Forest Labs, whose texts share a forward pass only at one length."""

    def collate_text(self, texts: Sequence[TextConditioning]) -> TextConditioning:
        return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}

    def text_groups(self, texts: Sequence[TextConditioning]) -> list[list[int]]:
        # Padding cannot be masked: the transformer attends to all tokens. ComfyUI cuts none off, so lengths differ.
        groups: dict[int, list[int]] = {}
        for index, text in enumerate(texts):
            groups.setdefault(text["prompt_embeds"].shape[1], []).append(index)
        return list(groups.values())

    def combine_guidance(self, positive: torch.Tensor, negative: torch.Tensor, guidance: float) -> torch.Tensor:
        return negative + guidance * (positive - negative)
