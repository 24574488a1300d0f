"""Scales of LoRA files without alpha tensors: from the header, or from the configuration that PEFT writes beside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..single_file.header import open_weights

PREFIX = "transformer."
"""Prefix of the portable form's keys."""

HEADER_KEY = "lora_adapter_metadata"
"""Header key under which diffusers' `save_lora_weights` and `save_lora_adapter` write PEFT's LoraConfig as JSON."""

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names under which PEFT's `save_pretrained` writes a LoRA and its LoraConfig."""

MAX_CONFIG_BYTES = 2**20
"""Largest adapter_config.json that is read; a judgement: real ones have a kilobyte."""


_PLAIN_PATTERN = re.compile(r"\^?(?:\w|\\?\.|\\d\+?)+\$?")
"""Patterns that are read: PEFT takes any regular expression, and a hostile one backtracks for hours."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales of B·A by module, as PEFT's LoraConfig defines them."""

    alpha: float | None = None
    """None: all scales are 1."""
    patterns: Mapping[str, float] = field(default_factory=dict)
    """Alphas of modules whose name ends with a match of the regular expression, as in PEFT."""
    rank_stabilized: bool = False
    """True if alpha is divided by the square root of the rank (rsLoRA)."""

    def of(self, module: str, rank: int) -> float:
        """Scale of a module of this rank, by diffusers' name."""
        if self.alpha is None:
            return 1.0
        matching = (value for pattern, value in self.patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(matching, self.alpha) / (rank**0.5 if self.rank_stabilized else rank)


def read_metadata(path: Path) -> dict[str, str]:
    """Read a LoRA file's header; one that PEFT wrote gets the configuration beside it. Raises BadInput."""
    metadata = dict(open_weights(path, "LoRA file").metadata)
    if config := peft_config(path):
        try:
            with config.open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise BadInput(f"{config} cannot be read ({error.strerror or error}).") from None
        if len(text) > MAX_CONFIG_BYTES:
            raise BadInput(f"{config} is no configuration of PEFT: it is larger than 1 MB.")
        metadata.setdefault(HEADER_KEY, text.decode("utf-8", "replace"))
    return metadata


def peft_config(path: Path) -> Path | None:
    """The configuration that belongs to a LoRA file; None for files that have their own header or none at all."""
    config = path.with_name(PEFT_CONFIG)
    return config if path.name == PEFT_FILE and config.is_file() else None


def file_scales(metadata: Mapping[str, str], what: str) -> Scales:
    """Scales from a file's header; all 1 if it has none. Raises BadInput for a damaged header."""
    try:
        if HEADER_KEY in metadata:
            config = _transformer_part(json.loads(metadata[HEADER_KEY]))
        else:
            config = {name: json.loads(metadata[name].lower()) for name in _PLAIN_KEYS if name in metadata}
        return _scales(config, what)
    except BadInput:
        raise
    except (ValueError, TypeError, AttributeError):
        raise BadInput(f"{what} is damaged: the LoRA's configuration ({HEADER_KEY}) cannot be read.") from None


_PLAIN_KEYS = ("lora_alpha", "use_rslora")
"""Fields of LoraConfig that some programs write into the header as they are."""


def _scales(config: Mapping[str, Any], what: str) -> Scales:
    if "lora_alpha" not in config:
        return Scales()
    patterns = {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
    if unusual := [pattern for pattern in patterns if not _PLAIN_PATTERN.fullmatch(pattern)]:
        raise BadInput(
            f"{what}: alpha_pattern in its configuration has {unusual[0][:80]!r}, which is not read: only module names "
            r"with \d+ for numbers are. Write the names out, or save the LoRA with one alpha."
        )
    scales = Scales(float(config["lora_alpha"]), patterns, bool(config.get("use_rslora")))
    if not all(map(math.isfinite, (scales.alpha or 0.0, *patterns.values()))):
        raise BadInput(f"{what} is damaged: an alpha in its configuration is not a finite number.")
    return scales


def unknown_scale_note(what: str, names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """A note on a LoRA of PEFT whose scale is told nowhere; None for others. `names` are those of its tensors."""
    if HEADER_KEY in metadata or "lora_alpha" in metadata or any(name.endswith(".alpha") for name in names):
        return None
    if not any(name.startswith("base_model.model.") for name in names):
        return None
    return (
        f"{what}: its scale is not known, and 1 is used. PEFT keeps alpha and rank in {PEFT_CONFIG}: keep that file "
        f"beside {PEFT_FILE}, or set the strength to alpha / rank."
    )


def _transformer_part(config: dict[str, Any]) -> dict[str, Any]:
    """The transformer's LoraConfig; a pipeline's header prefixes its keys with the model's name, a model's does not."""
    own = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    return own or config
