"""The fine-tune request: base model, dataset and training parameters, as the `image_editing` JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticKnownError

from ..errors import BadInput
from ..families.registry import base_model_names
from .recorded import FIRST_PARAMS, NO_EFFECT_ON_TRAINING, STRICT, RecordedModel
from .validation import count, decode_json, describe_fault


def _known_base_model(name: object) -> object:
    """Accept the names of the registered families, with the error of a Literal for others."""
    names = base_model_names()
    if isinstance(name, str) and name in names:
        return name
    quoted = [repr(known) for known in names]
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(quoted[:-1])} or {quoted[-1]}"})


def _list_base_models(schema: dict[str, Any]) -> None:
    schema["enum"] = base_model_names()


BaseModelName = Annotated[str, BeforeValidator(_known_base_model), Field(json_schema_extra=_list_base_models)]
"""Validated when a request is read, so that every registered family is known; a Literal would be fixed on import."""


TimestepType = Literal["weighted", "sigmoid", "linear"]


COLUMN_FIELDS = ("caption_column", "control_image_column", "image_column")
"""Request fields that name a column, in the order of `Columns`."""


DEFAULT_CONTROL_URL = (
    "https://hub.oxen.ai/api/repos/ox/Oxen-Character-Simple-Vector-Graphic"
    "/file/main/images/reference/bloxy_white_bg.png"
)


DEFAULT_SAMPLE_SIDE = 1024
"""Width and height of samples, in pixels, that nobody chose: a model that makes smaller ones follows its own size."""


class SamplePrompt(BaseModel):
    """One sample image of a run: a control image and the edit to make."""

    model_config = STRICT

    ctrl_img_url: str = Field(
        default="", description="URL or local path of the control image. Empty: the dataset's first control image."
    )
    prompt: str = Field(description="The edit to make.")


DEFAULT_SAMPLES = (
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="an ox holding a sign that says 'Oxen.ai'"),
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="a herd of oxen running in a field"),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the parquet columns that an example is read from."""

    caption: str
    control_image: str
    image: str
    """The target."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Columns:
        """Columns from a mapping that has all of COLUMN_FIELDS."""
        return cls(*(fields[field] for field in COLUMN_FIELDS))

    def to_fields(self) -> dict[str, str]:
        """Column names by request field."""
        return dict(zip(COLUMN_FIELDS, self.names, strict=True))

    @property
    def names(self) -> tuple[str, str, str]:
        """Caption, control image, target."""
        return self.caption, self.control_image, self.image


class TrainingParams(RecordedModel):
    """The `training_params` of a request; defaults and bounds are the published ones."""

    first_fields = FIRST_PARAMS

    batch_size: int = Field(default=1, ge=1, description="Examples per forward pass.")
    cache_text_embeddings: bool = Field(
        default=False,
        description="Compute every text embedding once, store it on disk and unload the text encoder for the rest of "
        "the run.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    caption_column: str = Field(min_length=1, description="The parquet column that holds the prompt.")
    control_image_column: str = Field(min_length=1, description="The parquet column that holds the input image.")
    gradient_accumulation: int = Field(default=1, ge=1, description="Micro-batches per optimizer step.")
    image_column: str = Field(min_length=1, description="The parquet column that holds the target (output) image.")
    learning_rate: float = Field(default=0.0002, gt=0, description="The optimizer's peak learning rate.")
    lora_alpha: int = Field(default=16, ge=1, description="The LoRA's scale is alpha / rank.")
    lora_rank: int = Field(default=16, ge=1, description="The LoRA's rank.")
    sample_every: int = Field(
        default=200,
        ge=1,
        description="Optimizer steps between two sets of samples.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_height: int = Field(
        default=DEFAULT_SAMPLE_SIDE,
        ge=1,
        description="Height of the samples, in pixels.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_width: int = Field(
        default=DEFAULT_SAMPLE_SIDE,
        ge=1,
        description="Width of the samples, in pixels.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    samples: list[SamplePrompt] = Field(
        default_factory=lambda: list(DEFAULT_SAMPLES),
        description="Prompts and control images sampled during the run to show progress.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    steps: int = Field(
        default=3000, ge=1, description="Optimizer steps in total.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    timestep_type: TimestepType = Field(
        default="weighted", description="Distribution of timesteps and weighting of losses."
    )
    use_lora: bool = Field(default=True, description="Train a LoRA. Off: fine-tune the full transformer.")

    @property
    def columns(self) -> Columns:
        """Columns of the parquet that the request names."""
        return Columns(self.caption_column, self.control_image_column, self.image_column)


class FineTuneRequest(BaseModel):
    """A complete `image_editing` fine-tune request."""

    model_config = STRICT

    resource: str = Field(
        min_length=1,
        description="Path of the parquet file, optionally after a branch name (main/edits.parquet).",
    )
    base_model: BaseModelName
    script_type: Literal["image_editing"]
    training_params: TrainingParams

    def to_json(self) -> str:
        """Serialize the request to JSON with all defaults; `parse_request` restores an equal request."""
        return self.model_dump_json(indent=2)


def request_faults(data: Any) -> list[str]:
    """List every fault of a request in decoded JSON, one line each: field, value and what is allowed."""
    try:
        FineTuneRequest.model_validate(data)
    except ValidationError as error:
        return [describe_fault(fault) for fault in error.errors(include_url=False)]
    return []


def parse_request(data: str | bytes | dict[str, Any], more_faults: list[str] | None = None) -> FineTuneRequest:
    """Parse a request from JSON text or decoded JSON.

    `more_faults` are faults found elsewhere (columns missing from the parquet), reported in the same message.
    Raises BadInput naming every fault at once.
    """
    if isinstance(data, str | bytes):
        data = decode_json(data, "the request")
    faults = request_faults(data) + (more_faults or [])
    if faults:
        raise BadInput(f"The request has {count(faults, 'fault')}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return FineTuneRequest.model_validate(data)
