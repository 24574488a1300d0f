"""The fine-tune request: what is trained, on what, and how. Exactly the `image_editing` request's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BadInput

BaseModelName = Literal[
    "Qwen/Qwen-Image-Edit",
    "black-forest-labs/FLUX.1-Kontext-dev",
    "tiny/flux-kontext",
    "tiny/qwen-image-edit",
]
BASE_MODELS: tuple[str, ...] = get_args(BaseModelName)
TimestepType = Literal["weighted", "sigmoid", "linear"]
TIMESTEP_TYPES: tuple[str, ...] = get_args(TimestepType)
COLUMN_FIELDS = ("caption_column", "control_image_column", "image_column")

DEFAULT_CONTROL_URL = (
    "https://hub.oxen.ai/api/repos/ox/Oxen-Character-Simple-Vector-Graphic"
    "/file/main/images/reference/bloxy_white_bg.png"
)

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SamplePrompt(BaseModel):
    """One sample drawn during the run, to show progress."""

    model_config = _CONFIG

    ctrl_img_url: str = Field(
        "", description="Address or local path of the control image; empty: the dataset's first control image."
    )
    prompt: str = Field(description="The edit to ask for.")


DEFAULT_SAMPLES = (
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="an ox holding a sign that says 'Oxen.ai'"),
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="a herd of oxen running in a field"),
)


class TrainingParams(BaseModel):
    """The `training_params` of a request; defaults and bounds are the published ones."""

    model_config = _CONFIG

    batch_size: int = Field(1, ge=1, description="Examples per forward pass.")
    cache_text_embeddings: bool = Field(
        False,
        description="Compute every text embedding once, keep it on disk and let the text encoder go for the whole run.",
    )
    caption_column: str = Field(min_length=1, description="The parquet column that holds the prompt.")
    control_image_column: str = Field(min_length=1, description="The parquet column that holds the input image.")
    gradient_accumulation: int = Field(1, ge=1, description="Micro-batches per optimizer step.")
    image_column: str = Field(min_length=1, description="The parquet column that holds the target (output) image.")
    learning_rate: float = Field(0.0002, gt=0, description="The optimizer's peak learning rate.")
    lora_alpha: int = Field(16, ge=1, description="The LoRA's scale is alpha / rank.")
    lora_rank: int = Field(16, ge=1, description="The LoRA's rank.")
    sample_every: int = Field(200, ge=1, description="Optimizer steps between two rounds of samples.")
    sample_height: int = Field(1024, ge=1, description="Height of the samples in pixels.")
    sample_width: int = Field(1024, ge=1, description="Width of the samples in pixels.")
    samples: list[SamplePrompt] = Field(
        default_factory=lambda: list(DEFAULT_SAMPLES), description="What is drawn during the run to show progress."
    )
    steps: int = Field(3000, ge=1, description="Optimizer steps.")
    timestep_type: TimestepType = Field("weighted", description="How timesteps are drawn and losses weighted.")
    use_lora: bool = Field(True, description="False: full fine-tune of the transformer.")


class FineTuneRequest(BaseModel):
    """A complete `image_editing` fine-tune request."""

    model_config = _CONFIG

    resource: str = Field(min_length=1, description="The parquet, optionally with a branch name as its first part.")
    base_model: BaseModelName
    script_type: Literal["image_editing"]
    training_params: TrainingParams

    def to_json(self) -> str:
        """The request as JSON, every default written out. `parse_request` gives back an equal request."""
        return self.model_dump_json(indent=2)


def request_faults(data: Any) -> list[str]:
    """Every fault of a request given as decoded JSON: one line each, with field, value and what is allowed."""
    try:
        FineTuneRequest.model_validate(data)
    except ValidationError as error:
        return [describe_fault(fault) for fault in error.errors(include_url=False)]
    return []


def parse_request(data: str | bytes | dict[str, Any], more_faults: list[str] | None = None) -> FineTuneRequest:
    """Read a request from JSON text or decoded JSON.

    `more_faults` are faults found elsewhere (columns the parquet lacks), to be named in the same message.
    Raises BadInput naming every fault at once.
    """
    if isinstance(data, str | bytes):
        data = decode_json(data, "the request")
    faults = request_faults(data) + (more_faults or [])
    if faults:
        raise BadInput(f"The request has {count(faults, 'fault')}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return FineTuneRequest.model_validate(data)


def read_json_file(path: Path, what: str) -> Any:
    """Decoded JSON of a file. Raises BadInput when it cannot be read or is not JSON."""
    try:
        return decode_json(path.read_bytes(), f"{what} {path}")
    except OSError as error:
        raise BadInput(f"Cannot read {what} {path}: {error.strerror or error}.") from error


def decode_json(text: str | bytes, what: str) -> Any:
    """Decode JSON. Raises BadInput with line and column, also for text that is not Unicode and for repeated keys."""
    try:
        data = json.loads(text, object_pairs_hook=_no_repeated_keys)
        json.dumps(data, ensure_ascii=False).encode()
        return data
    except BadInput:
        raise
    except json.JSONDecodeError as error:
        raise BadInput(f"{what} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{what} is not valid JSON: it is not UTF-8 text.") from None
    except UnicodeEncodeError:
        raise BadInput(f"{what} holds an escape that is half a character (a lone surrogate); remove it.") from None
    except ValueError as error:
        raise BadInput(f"{what} is not valid JSON: {error}.") from None
    except RecursionError:
        raise BadInput(f"{what} is not valid JSON: it is nested too deeply.") from None


def describe_fault(fault: Any) -> str:
    """One line for one pydantic error: field, value, what is allowed."""
    field = ".".join(str(part) for part in fault["loc"]) or "request"
    kind, context, value = fault["type"], fault.get("ctx", {}), fault.get("input")
    shown = json.dumps(value, default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if kind == "missing":
        return f"{field}: is required but missing"
    if kind == "extra_forbidden":
        return f"{field}: unknown field (value {shown}); remove it or check its spelling"
    if kind == "string_too_short":
        return f'{field}: is required but empty (value "")'
    if kind == "literal_error":
        return f"{field}: {shown} is not one of {context['expected']}"
    if kind == "greater_than_equal":
        return f"{field}: {shown} is too small, the least allowed is {context['ge']}"
    if kind == "greater_than":
        return f"{field}: {shown} is not allowed, it must be greater than {context['gt']}"
    if kind == "less_than_equal":
        return f"{field}: {shown} is too large, the most allowed is {context['le']}"
    names = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "model_type": "an object",
        "model_attributes_type": "an object",
        "dict_type": "an object",
    }
    return f"{field}: {shown} is not {names[kind]}" if kind in names else f"{field}: {shown}: {fault['msg']}"


def count(items: list[Any], noun: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise BadInput(f'The JSON gives "{key}" twice; keep one of them.')
        result[key] = value
    return result
