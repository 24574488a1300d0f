"""Samples on another base than the trained one: on the model that was distilled from it, in a few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..config.request import RequestParams
from ..config.settings import RunSettings
from ..device import query_device
from ..errors import BadInput
from ..inference import DenoiseOptions
from ..memory.model_parts import ModelComponents
from ..memory.planner import inference_plan
from ..models.edit_model import EditModel
from ..models.model_files import NO_FILES, is_distilled
from ..models.transformer import check_single_file
from ..paths import path_kind, typed_path

DISTILLED_STEPS, DISTILLED_GUIDANCE = 4, 1.0
"""Sampler steps and guidance of distilled models. Source: Flux2KleinPipeline's examples and ComfyUI's templates."""


class SampleBase:
    """A model that takes the trained LoRA and the device while samples are drawn."""

    def __init__(self, model: EditModel, settings: RunSettings, source: Path, controls: int) -> None:
        """`source`: file or folder of its transformer; `controls`: control images that a sample has at most."""
        self.model, self.settings = model, settings
        self._source, self._controls = source, controls

    @property
    def options(self) -> DenoiseOptions:
        """Options of the sampler; those that the settings leave open are a distilled model's, or the base's own."""
        settings, variant = self.settings, self.model.family.variant
        distilled = is_distilled(self.model.family, self._source)
        steps = DISTILLED_STEPS if distilled else variant.sample_steps
        guidance = DISTILLED_GUIDANCE if distilled else variant.sample_guidance
        return DenoiseOptions(
            settings.sample_steps or steps, settings.sample_guidance or guidance, settings.sample_seed
        )

    @contextmanager
    def drawing(self, trained: ModelComponents, lora: Mapping[str, torch.Tensor]) -> Iterator[ModelComponents]:
        """Context with the components to draw with, of which the transformer is used; those of the training wait in
        host memory meanwhile. `lora`: exported tensors [rank, in] and [out, rank] of any float dtype."""
        trained.to_host()
        model = self.model.with_adapter(lora)
        plan = inference_plan(model, self.settings, query_device(trained.device), self._controls)
        components = ModelComponents(model, trained.device, plan)
        try:
            yield components
        finally:
            components.drop("transformer")


def open_sample_base(
    model: EditModel, params: RequestParams, settings: RunSettings, processes: int
) -> SampleBase | None:
    """Check the base that the settings name for samples; None if they name none. Loads no weights.

    Raises BadInput if it does not exist, the LoRA does not fit it, or the training makes no LoRA or has several
    processes.
    """
    if not settings.sample_base:
        return None
    if not params.use_lora:
        raise BadInput("sample_base: a full fine-tune (use_lora false) has no LoRA for another base; leave it empty.")
    if settings.sample_lora:
        raise BadInput("sample_base: cannot be combined with sample_lora; leave one of them empty.")
    if processes > 1:
        raise BadInput("sample_base: training in several processes draws on the trained base alone; leave it empty.")
    try:
        source = typed_path(settings.sample_base)
        other = _with_transformer(model, source)
    except BadInput as error:
        raise BadInput(f"sample_base: {error}") from None
    if _shapes(other) != _shapes(model):
        raise BadInput(
            f"sample_base: {source} has other layers than {model.base_model}, so its LoRA does not fit. Name the model "
            "that was distilled from it."
        )
    controls = max([len(params.columns.controls), *(len(sample.control_urls) for sample in params.samples)])
    return SampleBase(other, settings, source, controls)


def _with_transformer(model: EditModel, source: Path) -> EditModel:
    """The model with the transformer of a file, or of a folder in diffusers' layout."""
    kind = path_kind(source)
    if kind == "file":
        check_single_file(model.family, source)
        return replace(model, files=replace(model.files, transformer=source))
    if kind != "folder" or path_kind(source / "transformer" / "config.json") != "file":
        raise BadInput(f"{source} is neither a file nor a folder in diffusers' layout.")
    return replace(model, folder=source, files=NO_FILES)


def _shapes(model: EditModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.empty_transformer().named_parameters()}
