"""RunSettings: the options of a run that the request does not have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from ..errors import BadInput
from .recorded import FIRST_SETTINGS, NO_EFFECT_ON_TRAINING, RecordedModel
from .request import RequestParams
from .validation import count, describe_fault


class RunSettings(RecordedModel):
    """Settings of one run. Each field is a node input, a command-line option and a key of `settings.json`.

    Choices are Literals of strings, numbers are int or float, switches are bool: widgets and options are made from
    these types.
    """

    first_fields = FIRST_SETTINGS

    seed: int = Field(default=42, ge=0, le=2**63 - 1, description="Seed of everything random in the run.")
    resolution: int = Field(
        default=0,
        ge=0,
        le=8192,
        description="Square root of the target image's area, in pixels. 0: the model's own (1024; tiny models 64).",
    )
    control_resolution: Literal["inference", "target"] = Field(
        default="inference",
        description="Area that control images are resized to. inference: that of the inference pipeline; target: that "
        "of the target image.",
    )
    conditioning: Literal["auto", "diffusers", "comfyui"] = Field(
        default="auto",
        description="Image resizing and text templates to follow. auto: comfyui where CLIP and VAE are connected, else "
        "diffusers.",
    )
    images_root: str = Field(
        default="",
        description="Folder that relative image paths start from. Empty: the folder of the parquet file.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    bad_rows: Literal["stop", "skip"] = Field(
        default="stop",
        description="Action on rows that cannot be used. stop: end with an error; skip: train without them.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    precision: Literal["auto", "fp32", "bf16", "int8", "fp8", "nf4"] = Field(
        default="auto",
        description="Number format of the frozen base weights. auto: bf16 on a GPU if it fits, else int8; fp32 on the "
        "CPU. nf4 needs bitsandbytes.",
    )
    offload: Literal["auto", "none", "phases", "modulation", "blocks"] = Field(
        default="auto",
        description="What is offloaded to host memory. none: nothing. phases: text encoder, VAE and transformer take "
        "turns on the GPU. modulation: also the modulation layers. blocks: also the transformer blocks, streamed one "
        "at a time. auto: the least that fits.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    gradient_checkpointing: Literal["auto", "on", "off", "selective"] = Field(
        default="auto",
        description="Recompute activations in the backward pass to save memory. selective: all but the attention "
        "output. auto: in as few blocks as possible.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="Compile the transformer blocks with torch.compile. auto: off."
    )
    lora_targets: Literal["attention+mlp", "attention", "all-linear"] = Field(
        default="attention+mlp",
        description="Linear layers of the transformer blocks that get a LoRA. all-linear: also those of the "
        "modulation.",
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = Field(
        default="adamw",
        description="adamw8bit stores its state in 8 bits and needs bitsandbytes. adafactor makes a full fine-tune in "
        "bf16 with stochastic rounding, in a quarter of AdamW's memory.",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Global norm that gradients are clipped to. 0: no clipping."
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up. linear and cosine fall to 0 at the last step."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps in which the learning rate rises linearly from 0.")
    caption_dropout: float = Field(
        default=0.0, ge=0, le=1, description="Fraction of examples trained with an empty caption."
    )
    training_guidance: float = Field(
        default=1.0, ge=0, description="Guidance embedding during training, for models that have one (FLUX.1 Kontext)."
    )
    sample_steps: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Sampler steps per sample. 0: the model's own.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_guidance: float = Field(
        default=0.0,
        ge=0,
        description="Guidance scale of the samples. 0: the model's own.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_seed: int = Field(
        default=42,
        ge=0,
        le=2**63 - 1,
        description="Seed of the samples' initial noise.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    checkpoint_every: int = Field(
        default=0,
        ge=0,
        description="Steps between checkpoints. 0: at every set of samples.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    keep_checkpoints: int = Field(
        default=3, ge=1, description="Number of newest checkpoints to keep.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    save_dtype: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Number format of the exported weights.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    save_layout: Literal["single_file", "single_file+diffusers"] = Field(
        default="single_file",
        description="Output of a full fine-tune: the single file that ComfyUI loads, or also a folder in diffusers "
        "layout.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    init_lora: str = Field(
        default="",
        description="LoRA file to continue training from. Empty: start a new LoRA.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    quantize_activations: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Round the inputs of int8 and fp8 weights too, and multiply in int8 and fp8. off: only weights are "
        "rounded. auto: where the GPU is faster so.",
    )
    allow_no_control: bool = Field(
        default=False,
        description="Train rows without a control image too, as text to image. Off: such a row cannot be used.",
    )
    cache_text_embeddings: bool = Field(
        default=False,
        description="Compute every text embedding once and store it on disk, as the parameter of this name does, which "
        "a request for several control images does not have.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    tensorboard: bool = Field(
        default=False,
        description="Write TensorBoard's event files to the run folder. Needs tensorboard.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    validation_rows: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description="Rows that are never trained on and whose loss is measured instead: from 1 on their number, below "
        "it their share. 0: none.",
    )
    validate_every: int = Field(
        default=0,
        ge=0,
        description="Optimizer steps between two measurements of the held-out loss. 0: as between sets of samples.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    keep_best: bool = Field(
        default=True,
        description="Keep the checkpoint of the lowest held-out loss, and export its weights too.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        le=0.9999,
        description="Decay of an exponential moving average of the trained weights, such as 0.99, which is exported "
        "beside them. 0: none.",
    )
    sample_ema: bool = Field(
        default=False,
        description="Draw the samples with the averaged weights of ema_decay.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    mask_column: str = Field(
        default="",
        description="The parquet column that holds a grey picture of where the loss counts: white in full, black not. "
        "Empty: no such column.",
    )
    mask: Literal["column", "difference"] = Field(
        default="column",
        description="Origin of the masks. column: mask_column, if there is one; difference: where control image and "
        "target differ.",
    )
    mask_min: float = Field(default=0.0, ge=0, le=1, description="Weight of the loss where a mask is black.")
    mask_prior: float = Field(
        default=0.0,
        ge=0,
        description="Weight of a second loss that keeps what the base draws outside of the masks, such as 0.5. It "
        "takes a forward pass more. 0: none.",
    )
    sample_lora: str = Field(
        default="",
        description="LoRA file that is applied only while samples are drawn, such as one that needs few steps. Empty: "
        "none.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_lora_strength: float = Field(
        default=1.0, ge=0, description="Strength of sample_lora.", json_schema_extra=NO_EFFECT_ON_TRAINING
    )
    sample_lora_steps: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Sampler steps per sample with sample_lora, in place of sample_steps.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_lora_guidance: float = Field(
        default=1.0,
        ge=0,
        description="Guidance scale of the samples with sample_lora, in place of sample_guidance. 0: the model's own.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )
    sample_base: str = Field(
        default="",
        description="Transformer to draw samples with, a file or a folder in diffusers' layout: the model that was "
        "distilled from the base, in 4 steps at guidance 1. Empty: the trained base.",
        json_schema_extra=NO_EFFECT_ON_TRAINING,
    )


LOCAL_FILES = ("init_lora", "sample_lora", "sample_base")
"""Settings that hold the path of a file or folder. Only the last part of it leaves the machine or enters a LoRA's
header."""


def caches_texts(params: RequestParams, settings: RunSettings) -> bool:
    """Tell whether text embeddings are computed once and kept, as the request or the settings say."""
    return params.caches_texts or settings.cache_text_embeddings


def has_masks(settings: RunSettings) -> bool:
    """Tell whether the loss is weighted by masks."""
    return bool(settings.mask_column) or settings.mask == "difference"


def parse_settings(data: Any) -> RunSettings:
    """Parse settings from decoded JSON; missing keys take defaults. Raises BadInput naming every fault at once."""
    try:
        return RunSettings.model_validate(data)
    except ValidationError as error:
        faults = [describe_fault(fault) for fault in error.errors(include_url=False)]
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise BadInput(f"The run settings have {count(faults, 'fault')}:\n{lines}") from None


Precision = Literal["fp32", "bf16", "int8", "fp8", "nf4"]
"""Number format of the frozen base's linear weights. Weights of a quantized file keep the file's format."""
