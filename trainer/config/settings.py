"""RunSettings: what a run needs to know and the request does not say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from ..errors import BadInput
from .recorded import FIRST_SETTINGS, NO_EFFECT_ON_TRAINING, RecordedModel
from .validation import count, describe_fault


class RunSettings(RecordedModel):
    """Settings of one run. Every field is a node input, a command-line option and a key of `settings.json`."""

    first_fields = FIRST_SETTINGS

    seed: int = Field(42, ge=0, le=2**63 - 1, description="Everything random in the run follows from it.")
    resolution: int = Field(
        0,
        ge=0,
        le=8192,
        description="Square root of the target's area in pixels; 0: the family's own (1024, the tiny models 64).",
    )
    control_resolution: Literal["inference", "target"] = Field(
        "inference",
        description="Area of the control image: the one the inference pipeline gives it, or the target's.",
    )
    conditioning: Literal["auto", "diffusers", "comfyui"] = Field(
        "auto",
        description="Whose resizing and text templates are followed; auto: comfyui where CLIP and VAE are given.",
    )
    images_root: str = Field(
        "",
        description="Where relative image paths start; empty: the parquet's folder.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="What happens when rows cannot be used.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    precision: Literal["auto", "fp32", "bf16", "int8", "fp8", "nf4"] = Field(
        "auto",
        description="How the frozen base is held; auto: bf16 on a GPU where it fits, else int8; fp32 on the CPU. "
        "nf4 needs bitsandbytes.",
    )
    offload: Literal["auto", "none", "phases", "modulation", "blocks"] = Field(
        "auto",
        description="phases: text encoder, VAE and transformer take turns on the device; modulation: and the "
        "transformer's modulation stays in host memory; blocks: and so do its blocks, which come one by one; none: all "
        "stays; auto: as little of that as fits.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    gradient_checkpointing: Literal["auto", "on", "off", "selective"] = Field(
        "auto",
        description="Recompute activations in the backward pass to save memory; selective: all but the attention; "
        "auto: for as many blocks as need it.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile the transformer's repeated blocks with torch.compile; auto: off."
    )
    lora_targets: Literal["attention+mlp", "attention", "all-linear"] = Field(
        "attention+mlp", description="Which linear layers of the transformer blocks get a LoRA."
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = Field(
        "adamw",
        description="adamw8bit holds its state in 8 bits (needs bitsandbytes); adafactor trains all weights in bf16 "
        "with stochastic rounding, in a quarter of AdamW's memory.",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this global norm; 0: no clipping.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="The learning rate after the warm-up: constant, or falling to 0 at the last step."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of examples trained with an empty caption.")
    training_guidance: float = Field(
        1.0, ge=0, description="Guidance embedding during training, for bases that have one."
    )
    sample_steps: int = Field(
        0,
        ge=0,
        le=1000,
        description="Sampler steps of a sample; 0: the family's own.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_guidance: float = Field(
        0.0, ge=0, description="Guidance of a sample; 0: the family's own.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    sample_seed: int = Field(
        42, ge=0, le=2**63 - 1, description="Seed of the samples' noise.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="Steps between checkpoints; 0: with every sampling.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="How many of the newest checkpoints are kept.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    save_dtype: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="Number format of the exported weights.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    save_layout: Literal["single_file", "single_file+diffusers"] = Field(
        "single_file",
        description="What a full fine-tune saves: the single file that ComfyUI opens, or a diffusers folder beside it.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    init_lora: str = Field(
        "",
        description="A LoRA file that training goes on from; empty: a fresh one.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )


def parse_settings(data: Any) -> RunSettings:
    """Settings from decoded JSON (missing keys take their defaults). Raises BadInput naming every fault at once."""
    try:
        return RunSettings.model_validate(data)
    except ValidationError as error:
        faults = [describe_fault(fault) for fault in error.errors(include_url=False)]
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise BadInput(f"The run settings have {count(faults, 'fault')}:\n{lines}") from None


Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8", "nf4"]
"""How the large weights of the frozen base are held. Those of a quantized file stay as they are stored."""
