"""ComfyUI's text encoder classes of FLUX.2 [klein] at reduced size, which ComfyUI 0.33 has."""

from __future__ import annotations

from typing import Any

import torch
from comfy.sd1_clip import SDClipModel
from comfy.text_encoders.flux import Flux2TEModel, KleinTokenizer
from comfy.text_encoders.llama import Qwen3_4B

__all__ = ["KleinTokenizer", "SmallKleinClip"]

QWEN3: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 28,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class SmallQwen3(Qwen3_4B):
    """Built without weights first, as at full width they would take gigabytes."""

    def __init__(self, config_dict, dtype, device, operations) -> None:
        super().__init__(config_dict, dtype, torch.device("meta"), operations)
        self.to_empty(device=device)


class SmallKleinModel(SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options: dict | None = None) -> None:
        super().__init__(
            device=device,
            layer=[9, 18, 27],
            textmodel_json_config=dict(QWEN3),
            dtype=dtype,
            special_tokens={"pad": 151643},
            layer_norm_hidden_state=False,
            model_class=SmallQwen3,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options or {},
        )


class SmallKleinClip(Flux2TEModel):
    def __init__(self, device="cpu", dtype=None, model_options: dict | None = None) -> None:
        options = {"device": device, "dtype": dtype, "model_options": model_options or {}}
        super().__init__(name="qwen3_4b", clip_model=SmallKleinModel, **options)
