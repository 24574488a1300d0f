"""Fields of the request and the settings that run fingerprints and weights files record.

Fields of the first release are always recorded. A later field is recorded only if it differs from its default, so that
runs and files made before it keep their fingerprints and headers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticKnownError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
"""Configuration of all models that validate user input."""


MAX_NUMBER = 1e30
"""Largest number of a field; a judgement: what is computed with it should stay below 3e38, where float32 ends."""


NO_EFFECT_ON_TRAINING: JsonDict = {"changes_training": False}
"""`json_schema_extra` of a field that changes neither losses nor trained weights, or only through the dataset's content
(images_root, bad_rows) or the initial LoRA (init_lora), which have fingerprints of their own. Such a field is left out
of the run's fingerprint; a field without the mark is in."""


FIRST_PARAMS = frozenset(
    {
        "batch_size",
        "cache_text_embeddings",
        "caption_column",
        "control_image_column",
        "gradient_accumulation",
        "image_column",
        "learning_rate",
        "lora_alpha",
        "lora_rank",
        "sample_every",
        "sample_height",
        "sample_width",
        "samples",
        "steps",
        "timestep_type",
        "use_lora",
    }
)
"""Parameters of `image_editing` in the first release. Complete: never add to it."""


FIRST_MULTI_IMAGE_PARAMS = (FIRST_PARAMS - {"cache_text_embeddings", "control_image_column"}) | {
    "control_image_columns"
}
"""Parameters of `multi_image_editing` in the first release that has it. Complete: never add to it."""


FIRST_SETTINGS = frozenset(
    {
        "bad_rows",
        "caption_dropout",
        "checkpoint_every",
        "compile",
        "conditioning",
        "control_resolution",
        "gradient_checkpointing",
        "images_root",
        "init_lora",
        "keep_checkpoints",
        "lora_targets",
        "lr_scheduler",
        "max_grad_norm",
        "offload",
        "optimizer",
        "precision",
        "resolution",
        "sample_guidance",
        "sample_seed",
        "sample_steps",
        "save_dtype",
        "save_layout",
        "seed",
        "training_guidance",
        "warmup_steps",
        "weight_decay",
    }
)
"""Run settings of the first release. Complete: never add to it."""


class RecordedModel(BaseModel):
    """A model whose fields enter run fingerprints and weights files."""

    model_config = STRICT

    first_fields: ClassVar[frozenset[str]]
    """Fields that are recorded even at their default."""

    @field_validator("*")
    @classmethod
    def _no_overflow(cls, value: Any) -> Any:
        if isinstance(value, float) and value > MAX_NUMBER:
            raise PydanticKnownError("less_than_equal", {"le": MAX_NUMBER})
        return value

    def recorded(self) -> dict[str, Any]:
        """Fields for a weights file's header, in the order of the class."""
        values = self.model_dump()
        for name, field in type(self).model_fields.items():
            if name not in self.first_fields and getattr(self, name) == field.get_default(call_default_factory=True):
                del values[name]
        return values

    def recorded_for_training(self) -> dict[str, Any]:
        """Fields for a run's fingerprint: those recorded that change the losses."""
        return {name: value for name, value in self.recorded().items() if self.changes_training(name)}

    @classmethod
    def changes_training(cls, name: str) -> bool:
        """Tell whether the field enters run fingerprints."""
        return cls.model_fields[name].json_schema_extra != NO_EFFECT_ON_TRAINING
