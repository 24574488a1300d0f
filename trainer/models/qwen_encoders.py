"""Text encoder and VAE of Qwen-Image-Edit, run as its pipelines do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline

from .captions import control_tokens, plain_ids
from .diffusers_family import PipelineCodec, PipelineTextEncoder, to_pil
from .types import TextConditioning

EditPipeline = QwenImageEditPipeline | QwenImageEditPlusPipeline


class QwenTextEncoder(PipelineTextEncoder):
    """Qwen2.5-VL with the pipeline's prompt template, which includes the control image."""

    def __init__(self, pipeline: EditPipeline, device: torch.device | str, fingerprint: str) -> None:
        # Encoding takes hidden states; the words that would follow are not computed.
        pipeline.text_encoder.lm_head = torch.nn.Identity()
        super().__init__(pipeline, device, fingerprint)
        self.pipeline = pipeline

    @torch.no_grad()
    def encode(self, caption: str, controls: Sequence[torch.Tensor]) -> TextConditioning:
        """Encode one caption and one control [1, 3, H, W] float32 in 0..1 to `prompt_embeds` [1, tokens, width] in the
        encoder's dtype."""
        image = self.shown(controls)
        processor = self.pipeline.processor
        if control_tokens([processor.tokenizer], caption):
            processor.caption_ids = plain_ids(processor.tokenizer, caption)
            caption = ""
        try:
            prompt, _ = self.pipeline.encode_prompt(caption, image=image, device=self.device)
        finally:
            processor.caption_ids = []
        return {"prompt_embeds": prompt}

    def shown(self, controls: Sequence[torch.Tensor]) -> Any:
        """Convert control images, each [1, 3, H, W] float32 in 0..1, to what the pipeline's processor takes."""
        (control,) = controls
        return to_pil(control)


class QwenCodec(PipelineCodec):
    """A video VAE on single frames; the frame axis is added and removed here."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, H, W] float32 in -1..1 to latents [B, C, H/8, W/8] in the VAE's dtype."""
        return super().encode(pixels.unsqueeze(2)).squeeze(2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [B, C, h, w] of any float dtype to [B, 3, 8h, 8w] in -1..1 in the VAE's dtype."""
        return super().decode(latents.unsqueeze(2)).squeeze(2)

    def for_batches(self) -> QwenCodec | None:
        """None on the CPU, where batches are encoded in threads."""
        # The VAE caches frames in itself while encoding, so a second thread, as batches use on the CPU, is impossible.
        return None if self.module.device.type == "cpu" else self
