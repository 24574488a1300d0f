"""Model card of a LoRA: how to use it, how it was trained, and its sample images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..families.registry import find_family, find_variant

PROGRAM_TAG = "edit-trainer"
"""Tag of every repository that this program has pushed to; only these are overwritten."""

TAGS = ("lora", "diffusers", "image-to-image", PROGRAM_TAG)

_NO_PROMPT = "-"
"""Text of an image without a prompt in the hub's gallery, which shows none that lacks a text."""


@dataclass(frozen=True, slots=True)
class CardSample:
    """A sample image on the card."""

    file: str
    """Name in the repository."""
    prompt: str
    """Empty: not known, or not for others."""


def model_card(
    repo: str, weights: str, step: int, request: FineTuneRequest, settings: RunSettings, samples: Sequence[CardSample]
) -> str:
    """Return the text of README.md for the LoRA file `weights` of a step in a repository."""
    from huggingface_hub import ModelCard, ModelCardData

    variant = find_variant(request.base_model)
    widget = [{"text": sample.prompt or _NO_PROMPT, "output": {"url": sample.file}} for sample in samples]
    fields: dict[str, Any] = {"widget": widget} if widget else {}
    if not variant.embedded:
        fields |= {"base_model": request.base_model, "base_model_relation": "adapter", **_license(request.base_model)}
    data = ModelCardData(library_name="diffusers", pipeline_tag="image-to-image", tags=list(TAGS), **fields)
    prompt = next((sample.prompt for sample in samples if sample.prompt), "...")
    parts = [
        f"# {repo.rpartition('/')[2]}",
        f"A LoRA for image edits with {_link(request.base_model, variant.embedded)}, trained for {step:,} steps with "
        "edit-trainer.",
        "<Gallery />" if widget else "",
        "## Use it with diffusers",
        f"```py\n{_diffusers_code(repo, weights, request, settings, prompt)}\n```",
        "## Use it with ComfyUI",
        f"Put `{weights}` into `models/loras` and add a *Load LoRA (Model)* node (`LoraLoaderModelOnly`) after the "
        "node that loads the base model.",
        "## Training",
        _table(_training_facts(step, request, settings)),
        "`request.json` and `settings.json` hold all parameters, without the places of the training data.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"))


def _license(base_model: str) -> dict[str, str]:
    """License of a published base model, which its LoRAs fall under; empty: not known."""
    fields = find_variant(base_model).license or find_family(base_model).license
    return {key: text.replace("{base_model}", base_model) for key, text in fields.items()}


def _link(base_model: str, embedded: bool) -> str:
    return f"`{base_model}`" if embedded else f"[{base_model}](https://huggingface.co/{base_model})"


def _diffusers_code(repo: str, weights: str, request: FineTuneRequest, settings: RunSettings, prompt: str) -> str:
    """Return Python code that edits an image as the run's samples were drawn."""
    family = find_family(request.base_model)
    variant = family.variant(request.base_model)
    controls = len(request.training_params.columns.controls)
    loaded = [f'load_image("in{"" if number == 1 else f"_{number}"}.png")' for number in range(1, controls + 1)]
    image = loaded[0] if family.max_controls == 1 else f"[{', '.join(loaded)}]"
    guidance = settings.sample_guidance or variant.sample_guidance
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {family.pipeline_class}",
            "from diffusers.utils import load_image",
            "",
            f"pipeline = {family.pipeline_class}.from_pretrained({json.dumps(request.base_model)}, "
            'torch_dtype=torch.bfloat16).to("cuda")',
            f"pipeline.load_lora_weights({json.dumps(repo)}, weight_name={json.dumps(weights)})",
            "image = pipeline(",
            f"    image={image},",
            f"    prompt={json.dumps(prompt, ensure_ascii=False)},",
            f"    {family.guidance_arguments.replace('{guidance}', str(guidance))},",
            f"    num_inference_steps={settings.sample_steps or variant.sample_steps},",
            ").images[0]",
        ]
    )


def _training_facts(step: int, request: FineTuneRequest, settings: RunSettings) -> dict[str, Any]:
    params = request.training_params
    resolution = settings.resolution or find_variant(request.base_model).resolution
    return {
        "steps": step,
        "batch size": params.batch_size * params.gradient_accumulation,
        "learning rate": params.learning_rate,
        "learning rate schedule": settings.lr_scheduler,
        "optimizer": settings.optimizer,
        "LoRA rank": params.lora_rank,
        "LoRA alpha": params.lora_alpha,
        "LoRA targets": settings.lora_targets,
        "timesteps": params.timestep_type,
        "resolution": f"{resolution} x {resolution}",
        "precision of the base": settings.precision,
        "seed": settings.seed,
    }


def _table(facts: dict[str, Any]) -> str:
    return "\n".join(["| parameter | value |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())])
