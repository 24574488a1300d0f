"""The scale of a LoRA's modules where its tensors do not tell: diffusers' note in the file's header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadInput

HEADER_KEY = "lora_adapter_metadata"
"""Under it diffusers' `save_lora_weights` and `save_lora_adapter` write PEFT's LoraConfig as JSON."""
PREFIX = "transformer."


@dataclass(frozen=True, slots=True)
class Scales:
    """What is multiplied on B·A, by module."""

    alpha: float | None = None
    """None: everything has scale 1."""
    patterns: Mapping[str, float] = field(default_factory=dict)
    """The alphas of the modules whose name ends like this, regular expressions as in PEFT."""
    rank_stabilized: bool = False
    """alpha is divided by the root of the rank."""

    def of(self, module: str, rank: int) -> float:
        """The scale of a module by diffusers' name."""
        if self.alpha is None:
            return 1.0
        matching = (value for pattern, value in self.patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(matching, self.alpha) / (rank**0.5 if self.rank_stabilized else rank)


def file_scales(metadata: Mapping[str, str], what: str) -> Scales:
    """The scales that a file's header tells; all 1 where it tells none. Raises BadInput when it cannot be read."""
    if HEADER_KEY not in metadata:
        return Scales()
    try:
        config = _transformer_part(json.loads(metadata[HEADER_KEY]))
        if "lora_alpha" not in config:
            return Scales()
        patterns = {re.compile(key).pattern: float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
        return Scales(float(config["lora_alpha"]), patterns, bool(config.get("use_rslora")))
    except (ValueError, TypeError, AttributeError, re.error):
        raise BadInput(f"{what} is damaged: {HEADER_KEY} in its header cannot be read.") from None


def _transformer_part(config: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's note has each key once for every model, with its name in front; a model's own has no names."""
    own = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    return own or config
