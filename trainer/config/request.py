"""The fine-tune requests: base model, dataset and training parameters, as the JSON of `image_editing` and of
`multi_image_editing` has them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import PydanticKnownError

from ..errors import BadInput
from ..families.registry import base_model_names, find_family
from .columns import CONTROL_COLUMNS, Columns
from .recorded import FIRST_MULTI_IMAGE_PARAMS, FIRST_PARAMS, NO_EFFECT_ON_TRAINING, STRICT, RecordedModel
from .samples import DEFAULT_SAMPLE_SIDE, DEFAULT_SAMPLES, MultiImageSample, SamplePrompt
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


ScriptType = Literal["image_editing", "multi_image_editing"]


class RequestParams(RecordedModel):
    """The `training_params` that every request has; defaults and bounds are the published ones."""

    batch_size: int = Field(default=1, ge=1, description="Examples per forward pass.")
    caption_column: str = Field(min_length=1, description="The parquet column that holds the prompt.")
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
    @abstractmethod
    def columns(self) -> Columns:
        """Columns of the parquet that the request names."""

    @property
    def caches_texts(self) -> bool:
        """True if the request asks for text embeddings that are computed once and kept."""
        return False

    @model_serializer(mode="wrap")
    def _in_order(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the fields in the order of the published tables, which is alphabetical."""
        return dict(sorted(serialize(self).items()))


class TrainingParams(RequestParams):
    """The `training_params` of an `image_editing` request."""

    first_fields = FIRST_PARAMS

    cache_text_embeddings: bool = Field(
        default=False,
        description="Compute every text embedding once, store it on disk and unload the text encoder for the rest of "
        "the run.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    control_image_column: str = Field(min_length=1, description="The parquet column that holds the input image.")

    @property
    def columns(self) -> Columns:
        """Columns of the parquet that the request names."""
        return Columns(self.caption_column, (self.control_image_column,), self.image_column)

    @property
    def caches_texts(self) -> bool:
        """True if the request asks for text embeddings that are computed once and kept."""
        return self.cache_text_embeddings


class MultiImageParams(RequestParams):
    """The `training_params` of a `multi_image_editing` request."""

    first_fields = FIRST_MULTI_IMAGE_PARAMS

    control_image_columns: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1,
        description="The parquet columns that hold the input images, in the order in which the model sees them.",
    )
    samples: list[MultiImageSample] = Field(
        default_factory=lambda: [MultiImageSample(**sample.model_dump()) for sample in DEFAULT_SAMPLES],
        description="Prompts and control images sampled during the run to show progress.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )

    @property
    def columns(self) -> Columns:
        """Columns of the parquet that the request names."""
        return Columns(self.caption_column, tuple(self.control_image_columns), self.image_column)


WITHOUT_EFFECT = ("is_public", "oxen_model_path")
"""Fields that only the hosted service has a use for."""


class FineTuneRequest(BaseModel):
    """A complete fine-tune request."""

    model_config = STRICT

    resource: str = Field(
        min_length=1,
        description="Path of the parquet file, or of a folder or pattern of several, optionally after a branch name "
        "(main/edits.parquet); or hf://datasets/OWNER/NAME/FILE.",
    )
    base_model: BaseModelName
    script_type: ScriptType
    training_params: RequestParams
    is_public: bool = Field(default=False, description="Of the hosted service; has no effect here.")
    oxen_model_path: str | None = Field(default=None, description="Of the hosted service; has no effect here.")

    def to_json(self) -> str:
        """Serialize the request to JSON with all defaults; `parse_request` restores an equal request."""
        return self.model_dump_json(indent=2)

    def notice(self) -> str | None:
        """Say which fields of the request have no effect; None where it has none of them."""
        given = [name for name in WITHOUT_EFFECT if name in self.model_fields_set]
        if not given:
            return None
        return f"{' and '.join(given)} of the request {'has' if len(given) == 1 else 'have'} no effect here."

    @model_serializer(mode="wrap")
    def _as_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the fields without effect only where the request has them."""
        left_out = set(WITHOUT_EFFECT) - self.model_fields_set
        return {name: value for name, value in serialize(self).items() if name not in left_out}


class ImageEditingRequest(FineTuneRequest):
    """An `image_editing` request."""

    training_params: TrainingParams


class MultiImageRequest(FineTuneRequest):
    """A `multi_image_editing` request."""

    training_params: MultiImageParams


def _request_class(data: Any) -> type[FineTuneRequest]:
    """The class of a request in decoded JSON; where its script_type is not known, its column fields tell."""
    kind, params = (data.get("script_type"), data.get("training_params")) if isinstance(data, dict) else (None, None)
    if kind in get_args(ScriptType):
        return MultiImageRequest if kind == "multi_image_editing" else ImageEditingRequest
    return MultiImageRequest if isinstance(params, dict) and CONTROL_COLUMNS in params else ImageEditingRequest


def request_faults(data: Any) -> list[str]:
    """List every fault of a request in decoded JSON, one line each: field, value and what is allowed."""
    kind = _request_class(data)
    known = _fields_of(kind)

    def place(fault: Any) -> tuple[int, bool, str]:
        """Place of a fault in the order of the published tables, unknown fields last."""
        outer, inner = (*fault["loc"], "", "")[:2]
        at = [*kind.model_fields, outer].index(outer)
        return at, inner not in known, inner if outer == "training_params" and inner in known else ""

    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        faults = sorted(error.errors(include_url=False), key=place)
        return [describe_fault(fault) for fault in faults] + _control_faults(data)
    return _control_faults(request.model_dump())


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
    return _request_class(data).model_validate(data)


def _fields_of(kind: type[FineTuneRequest]) -> set[str]:
    params = kind.model_fields["training_params"].annotation
    assert isinstance(params, type) and issubclass(params, RequestParams)
    return {*params.model_fields, ""}


def _control_faults(data: Any) -> list[str]:
    """List the columns and samples with more control images than the base model takes. Other faults are passed over."""
    try:
        params = data["training_params"]
        columns, samples = params.get(CONTROL_COLUMNS), params.get("samples")
    except (KeyError, TypeError, AttributeError):
        return []
    given = {CONTROL_COLUMNS: columns} | {
        f"samples.{index}.ctrl_img_url": sample.get("ctrl_img_url")
        for index, sample in enumerate(samples if isinstance(samples, list) else [])
        if isinstance(sample, dict)
    }
    return [
        f"training_params.{field}: {fault}"
        for field, value in given.items()
        if isinstance(value, list) and (fault := too_many_controls(data.get("base_model"), len(value)))
    ]


def too_many_controls(base_model: Any, count: int) -> str | None:
    """Say that a base model does not take that many control images; None if it does, and for an unknown one."""
    try:
        most = find_family(base_model).max_controls
    except BadInput:
        return None
    takes = "one control image" if most == 1 else f"at most {most} control images"
    return f"{base_model} takes {takes}, and {count} are named" if count > most else None
