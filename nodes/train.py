"""Train Edit LoRA: trains a LoRA or the full transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..trainer.config.samples import SamplePrompt
from ..trainer.config.settings import RunSettings, parse_settings
from ..trainer.errors import BadInput, RunFailed
from .folders import cache_folder, publish_lora, publish_transformer, run_folder
from .host import borrowed_device, device_line, follow, readable_errors
from .kept_model import kept_of, release_all
from .live_run import LiveRun
from .request import build_request, params_for_settings
from .saved_runs import unfinished
from .schema import node_schema
from .types import EditDataset, EditModel, EditParams, EditRun, EditSamples, EditSettings, FinishedRun
from .widgets import field_input

if TYPE_CHECKING:
    from ..trainer.config.request import FineTuneRequest
    from ..trainer.data.dataset import EditDataset as Dataset
    from ..trainer.models.edit_model import EditModel as Model


class Train(io.ComfyNode):
    """Trains a base model on a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerTrain",
            display_name="Train Edit LoRA",
            search_aliases=["fine-tune", "finetune", "train Kontext", "train Qwen-Image-Edit", "LoRA trainer"],
            description="Trains the model. Cancel saves a checkpoint; Stop and save also gives the LoRA of that step "
            "to the nodes after this one. Queueing the same graph again resumes.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            inputs=[
                EditModel.Input("model", tooltip="Base model, from Load Edit Base Model."),
                EditDataset.Input("dataset", tooltip="From Load Edit Dataset or Fine-tune Request."),
                EditParams.Input("params", tooltip="From Edit Training Params or Fine-tune Request."),
                io.String.Input(
                    "run_name",
                    default="edit-lora",
                    tooltip="Name of the run's folder in output/edit_trainer and of the LoRA.",
                ),
                field_input(RunSettings, "seed"),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Resume the run of this name if data, model and settings are equal. Off: start a new run.",
                ),
                EditSamples.Input(
                    "samples", optional=True, tooltip="Samples that show progress during the run, from Sample Prompt."
                ),
                EditSettings.Input("settings", optional=True, tooltip="From Training Settings (advanced)."),
            ],
            advanced=("seed", "resume"),
            outputs=[
                EditModel.Output("model", tooltip="Trained model, for Edit Image or Edit Model (as MODEL)."),
                io.LoraModel.Output("lora", tooltip="LoRA, for Load LoRA Model. Empty after a full fine-tune."),
                EditRun.Output("run", tooltip="Run, for Preview Training Samples."),
                io.String.Output("path", tooltip="Path of the saved file."),
                io.LossMap.Output("loss", tooltip="Losses, for Plot Loss Graph."),
                io.LossMap.Output(
                    "validation_loss", tooltip="Losses of the held-out rows, for Plot Loss Graph; see validation_rows."
                ),
                io.LoraModel.Output(
                    "best_lora",
                    tooltip="LoRA of the lowest held-out loss, for Load LoRA Model; without held-out rows the last.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None = None, **inputs: Any) -> str:
        """Change while a run is unfinished, so that the same graph resumes it."""
        return unfinished(run_name) if run_name else ""

    @classmethod
    @readable_errors()
    def execute(
        cls,
        model: Model,
        dataset: Dataset,
        params: dict[str, Any],
        run_name: str,
        seed: int,
        resume: bool,
        samples: tuple[SamplePrompt, ...] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        from ..trainer.tracking.trackers import open_trackers, tracked
        from ..trainer.training.loop import train

        folder = run_folder(run_name, resume)
        request = build_request(dataset, params, model, samples)
        model = _conditioned(model, (settings or {}).get("conditioning", "auto"))
        run_settings = _run_settings(dataset, params, seed, settings or {})
        trackers = open_trackers(run_settings)
        workflow = (cls.hidden.extra_pnginfo or {}).get("workflow")
        live_run = LiveRun(cls.hidden.unique_id, folder.name, f"{model.base_model} {device_line()}", workflow)
        kept = kept_of(model)
        release_all()
        with live_run.reporting(), borrowed_device(kept.patcher) as device:
            training = train(
                request,
                dataset,
                replace(model, kept=None),
                run_settings,
                run_dir=folder,
                cache_dir=cache_folder(),
                control=live_run.control,
                device=device,
                session=kept.session,
            )
            follow(tracked(training, trackers, request, run_settings), live_run.show)
        return _results(model, request, live_run)


def _conditioned(model: Model, policy: str) -> Model:
    """Model with the chosen conditioning policy."""
    if policy == "comfyui" and model.ports is None:
        raise BadInput(
            'conditioning: "comfyui" needs the graph\'s clip and vae; connect them to Load Edit Base Model, or choose '
            '"auto".'
        )
    return replace(model, policy="diffusers", ports=None) if policy == "diffusers" else model


def _run_settings(dataset: Dataset, params: dict[str, Any], seed: int, settings: dict[str, Any]) -> RunSettings:
    elsewhere = {
        "seed": seed,
        "images_root": str(dataset.images_root),
        "bad_rows": dataset.bad_rows,
        "allow_no_control": dataset.allow_no_control,
        "mask_column": dataset.columns.mask,
        **params_for_settings(dataset, params),
    }
    return parse_settings(settings | elsewhere)


def _results(model: Model, request: FineTuneRequest, live_run: LiveRun) -> io.NodeOutput:
    """Publish the weights; returns the node's outputs and its text."""
    from ..trainer.tensors import read_weights
    from ..trainer.training.run_folder import RunFolder

    finished = live_run.finished
    if finished is None or finished.weights is None:
        raise RunFailed("The run ended without trained weights.")
    folder = RunFolder(finished.run_dir)
    losses, held_out = ([loss for _, loss in points] for points in (folder.losses(), folder.validation_losses()))
    run = FinishedRun(finished.run_dir, finished.step, len(request.training_params.samples))
    publish = publish_lora if request.training_params.use_lora else publish_transformer
    path = publish(finished.weights)
    best = publish(finished.best_weights) if finished.best_weights else path
    beside = [best] if finished.best_weights else []
    beside += [publish(averaged) for averaged in (finished.ema_weights, finished.best_ema_weights) if averaged]
    if request.training_params.use_lora:
        trained, lora = model.with_adapter(path), read_weights(path, "LoRA file")
        best_lora = lora if best == path else read_weights(best, "LoRA file")
    else:
        trained, lora, best_lora = model.with_weights(path), {}, {}
    loss = f", loss {losses[-1]:.4f}" if losses else ""  # the log may have been deleted
    done = f"{finished.step} of {finished.steps}" if finished.stopped else str(finished.step)
    others = "".join(f"\nBeside it: {other.name}" for other in beside)
    line = live_run.result_text(f"{done} steps done{loss}, saved as {path}")
    return io.NodeOutput(
        trained,
        lora,
        run,
        str(path),
        {"loss": losses},
        {"loss": held_out},
        best_lora,
        ui=ui.PreviewText(line + others),
    )
