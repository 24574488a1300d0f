"""Fine-tune Request and Save Fine-tune Request: conversion between the request's JSON and the nodes' outputs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io, ui

from ..trainer.config.request import FineTuneRequest, parse_request
from ..trainer.config.samples import SamplePrompt, sample_prompt
from ..trainer.config.settings import RunSettings
from ..trainer.errors import BadInput, printable
from ..trainer.families.registry import base_model_names
from ..trainer.files import write_text
from .dataset import open_with_notes
from .folders import (
    EXAMPLES,
    dataset_state,
    file_state,
    find_request,
    input_folder,
    is_saved_control,
    output_folder,
)
from .host import readable_errors
from .notes import OUTPUT, report_notes
from .params import PARAMS
from .schema import node_schema
from .types import EditDataset, EditModel, EditParams, EditSamples
from .widgets import MASK_COLUMN, field_inputs

if TYPE_CHECKING:
    from ..trainer.data.dataset import EditDataset as Dataset
    from ..trainer.models.edit_model import EditModel as Model


def build_request(
    dataset: Dataset, params: dict[str, Any], model: Model, samples: tuple[SamplePrompt, ...] | None
) -> FineTuneRequest:
    """Build the request of connected nodes; `samples` None takes the default samples of the request.

    Raises BadInput naming every fault, and for a model that is already trained.
    """
    if model.is_trained:
        raise BadInput("model: is already trained; connect Load Edit Base Model.")
    drawn = {} if samples is None else {"samples": [sample.model_dump() for sample in _fitting(samples, dataset)]}
    of_settings = params_for_settings(dataset, params)
    params = {name: value for name, value in params.items() if name not in of_settings}
    return parse_request(
        {
            "resource": dataset.path.absolute().as_posix(),
            "base_model": model.base_model,
            "script_type": "multi_image_editing" if _has_several(dataset) else "image_editing",
            "training_params": dataset.columns.to_fields() | params | drawn,
        }
    )


def _fitting(samples: tuple[SamplePrompt, ...], dataset: Dataset) -> tuple[SamplePrompt, ...]:
    """Samples as the dataset's kind of request has them.

    Raises BadInput for one with several control images, where the dataset has one column of them.
    """
    if _has_several(dataset):
        return samples
    if most := max((len(sample.control_urls) for sample in samples if len(sample.control_urls) > 1), default=0):
        raise BadInput(
            f"samples: a sample has {most} control images, and the dataset one column of them; name a column for each "
            "in Load Edit Dataset, or give the sample one image."
        )
    return tuple(sample_prompt(sample.prompt, sample.control_urls) for sample in samples)


def params_for_settings(dataset: Dataset, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that the dataset's kind of request does not have and that are run settings instead."""
    names = ("cache_text_embeddings",) if _has_several(dataset) else ()
    return {name: params[name] for name in names if name in params}


def _has_several(dataset: Dataset) -> bool:
    return len(dataset.columns.controls) > 1


class LoadRequest(io.ComfyNode):
    """Splits request JSON into EDIT_DATASET, EDIT_PARAMS, EDIT_SAMPLES and the base model's name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerLoadRequest",
            display_name="Fine-tune Request (JSON)",
            search_aliases=["fine-tune JSON", "load request", "training config"],
            description="Reads a complete image_editing or multi_image_editing fine-tune request, in the format of the "
            "hosted service.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "request",
                    multiline=True,
                    tooltip="JSON of the request, or the name of a JSON file in the input folder.",
                ),
                *field_inputs(RunSettings, ("allow_no_control",), optional=True),
                io.String.Input(
                    MASK_COLUMN,
                    default="",
                    optional=True,
                    tooltip=RunSettings.model_fields[MASK_COLUMN].description,
                ),
            ],
            advanced=("allow_no_control", MASK_COLUMN),
            outputs=[
                EditDataset.Output("dataset", tooltip="For Train Edit LoRA."),
                EditParams.Output("params", tooltip="For Train Edit LoRA."),
                EditSamples.Output("samples", tooltip="For Train Edit LoRA."),
                io.Combo.Output("base_model", options=base_model_names(), tooltip="For Load Edit Base Model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, request: str | None = None, allow_no_control: bool = False, mask_column: str | None = ""
    ) -> str | float:
        if request is None or mask_column is None:
            return float("nan")
        from ..trainer.data.load_request import load_request

        try:
            source = find_request(request)
            states = [file_state(source)] if isinstance(source, Path) else []
            parsed, parquet = load_request(source, input_folder(), EXAMPLES, download=False)
            return " ".join(
                [*states, dataset_state(parquet, replace(parsed.training_params.columns, mask=mask_column))]
            )
        except (BadInput, OSError):
            return "not there"

    @classmethod
    def validate_inputs(cls, request: str | None = None) -> bool | str:
        """Check the request, its parquet and the columns before anything runs; a linked input is None."""
        from ..trainer.data.hub_files import NotDownloaded
        from ..trainer.data.load_request import load_request

        try:
            if request is not None:
                load_request(find_request(request), input_folder(), EXAMPLES, download=False)
        except NotDownloaded:
            return True
        except BadInput as error:
            return printable(str(error))
        return True

    @classmethod
    @readable_errors()
    def execute(cls, request: str, allow_no_control: bool = False, mask_column: str = "") -> io.NodeOutput:
        from ..trainer.data.load_request import load_request

        parsed, parquet = load_request(find_request(request), input_folder(), EXAMPLES)
        params = parsed.training_params
        columns = replace(params.columns, mask=mask_column)
        dataset = open_with_notes(cls.hidden.unique_id, parquet, columns, allow_no_control=allow_no_control)
        kept = params.model_dump(include=set(PARAMS))
        notes = report_notes(dataset.report)
        return io.NodeOutput(dataset, kept, tuple(params.samples), parsed.base_model, ui={OUTPUT: notes})


class SaveRequest(io.ComfyNode):
    """Writes the request of connected nodes as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerSaveRequest",
            display_name="Save Fine-tune Request",
            search_aliases=["export request", "training config"],
            description="Writes the connected nodes as a request for `python -m trainer train`.",
            is_output_node=True,
            inputs=[
                EditDataset.Input("dataset", tooltip="Dataset to train on."),
                EditParams.Input("params", tooltip="Training parameters."),
                EditModel.Input("model", tooltip="Base model to train."),
                io.String.Input(
                    "filename_prefix",
                    default="edit_trainer/request",
                    tooltip="Prefix of the file name, in the output folder.",
                ),
                EditSamples.Input("samples", optional=True, tooltip="Samples that show progress during the run."),
            ],
            outputs=[io.String.Output("request", tooltip="JSON of the request.")],
        )

    @classmethod
    @readable_errors()
    def execute(
        cls,
        dataset: Dataset,
        params: dict[str, Any],
        model: Model,
        filename_prefix: str,
        samples: tuple[SamplePrompt, ...] | None = None,
    ) -> io.NodeOutput:
        folder, name, number, _, _ = folder_paths.get_save_image_path(filename_prefix, str(output_folder()))
        file = Path(folder) / f"{name}_{number:05}_.json"
        request = build_request(dataset, params, model, samples and _with_saved_controls(samples, file))
        write_text(file, request.to_json() + "\n")
        command = f'python -m trainer train "{file}"'
        if dataset.images_root != dataset.folder:
            command += f' --images-root "{dataset.images_root.absolute()}"'
        if dataset.bad_rows != "stop":
            command += f" --bad-rows {dataset.bad_rows}"
        if dataset.allow_no_control:
            command += " --allow-no-control true"
        if dataset.columns.mask:
            command += f' --mask-column "{dataset.columns.mask}"'
        if any(params_for_settings(dataset, params).values()):
            command += " --cache-text-embeddings true"
        return io.NodeOutput(request.to_json(), ui=ui.PreviewText(f"{file}\n{command}"))


def _with_saved_controls(samples: tuple[SamplePrompt, ...], file: Path) -> tuple[SamplePrompt, ...]:
    """Copy control images from ComfyUI's temporary folder to `file`'s; returns samples with the new paths."""
    saved = []
    for index, sample in enumerate(samples):
        urls = []
        for number, url in enumerate(sample.control_urls):
            if is_saved_control(url):
                name = f"control-{index:02d}-{number + 1}.png" if number else f"control-{index:02d}.png"
                path = file.with_name(f"{file.stem}{name}")
                shutil.copyfile(url, path)
                url = path.absolute().as_posix()
            urls.append(url)
        saved.append(sample_prompt(sample.prompt, urls))
    return tuple(saved)
