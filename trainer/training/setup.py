"""Opening a run: checks, run folder, memory plan, cache. Loads no weights of the model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.packages import require_package
from ..config.request import FineTuneRequest, RequestParams
from ..config.settings import RunSettings, has_masks
from ..distributed.processes import SingleProcess
from ..encoding.cache import TensorCache
from ..encoding.row_checks import RowChecks, RowFindings, check_samples
from ..errors import BadInput
from ..events import Event, Finished, Notice, Planned, Progress
from ..files import named_folder
from ..lora.init_lora import InitLora, open_init_lora
from ..lora.sample_lora import SampleLora, open_sample_lora
from ..memory.estimate import full_fine_tune_need
from ..memory.model_parts import ModelComponents
from ..memory.plan import Plan
from ..memory.planner import joint_plan
from ..models.captions import CaptionRules
from ..quantization.benchmark import compute_capability
from ..quantization.formats import format_of
from .checkpoint import last_step
from .choose_folder import open_run_folder
from .export import changed_settings
from .held_out import held_out_count, measuring_cost
from .optim import changed_schedule, check_optimizer
from .run_folder import RunFolder, run_fingerprint
from .sample_base import SampleBase, open_sample_base

if TYPE_CHECKING:
    from ..data.dataset import EditDataset
    from ..models.edit_model import EditModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The fixed surroundings of an open run, shared by all of its parts."""

    request: FineTuneRequest
    settings: RunSettings
    dataset: EditDataset
    components: ModelComponents
    run: RunFolder
    cache: TensorCache
    processes: SingleProcess
    init_lora: InitLora | None
    sample_lora: SampleLora | None
    sample_base: SampleBase | None
    identity: Mapping[str, str]
    """Fingerprint of the run, how it computes and its conditioning policy, which its checkpoints carry."""

    @property
    def params(self) -> RequestParams:
        """The request's training parameters."""
        return self.request.training_params

    @property
    def plan(self) -> Plan:
        """The memory plan."""
        return self.components.plan


def open_run(
    request: FineTuneRequest,
    dataset: EditDataset,
    model: EditModel,
    settings: RunSettings,
    processes: SingleProcess,
    held: ExitStack,
    *,
    run_dir: Path,
    cache_dir: Path | None = None,
    device: torch.device | None = None,
) -> Generator[Event, None, RunContext | Finished]:
    """Yield notices and the plan; return the open run, or the end of one that was finished before.

    `held` then holds the lock of the run folder. Raises BadInput when the run cannot start.
    """
    params = request.training_params
    init_lora = open_init_lora(model, params, settings)
    sample_base = open_sample_base(model, params, settings, processes.world_size)
    weights = [model.fingerprint("transformer"), model.fingerprint("vae"), model.fingerprint("text")]
    weights += [init_lora.fingerprint] if init_lora is not None else []
    run_dir = named_folder(run_dir)
    cache_dir = cache_dir or run_dir.parent / "edit_trainer_cache"
    yield from _notices([*model.warnings(), request.notice()])
    fingerprint_of = partial(run_fingerprint, request, settings, model=weights, world_size=processes.world_size)
    fingerprint = fingerprint_of((yield from _data_fingerprint(dataset, cache_dir / "digests", processes)))
    opening = partial(
        open_run_folder,
        former=lambda: fingerprint_of(dataset.former_fingerprint()),
        differences=partial(changed_settings, request=request, settings=settings),
    )
    run = yield from _open_folder(opening, run_dir, fingerprint, params.steps, processes, held)
    if finished := _finished(run, params.steps, processes):
        return finished
    sample_lora = open_sample_lora(model, settings)
    yield from _notices(notice for lora in (init_lora, sample_lora) if lora for notice in lora.notices)
    _check_settings(params, settings, dataset, processes)
    yield from _notices([None if params.use_lora else full_fine_tune_need(model, settings, processes.world_size)])
    dataset, model = yield from _check_rows(request, dataset, model, settings, processes)
    device = device or processes.device()
    plan = joint_plan(model, params, resumed_settings(run, settings), processes, device)
    _require_format(plan)
    yield _planned(plan, len(dataset), params, settings, processes)
    arithmetic = arithmetic_of(plan, device)
    yield from _notices([_changed_arithmetic(run.state(), arithmetic), _changed_schedule(run, params, settings)])
    identity = {"fingerprint": fingerprint, **arithmetic, "conditioning": model.policy}
    run.begin(request, settings, identity)
    return RunContext(
        request=request,
        settings=settings,
        dataset=dataset,
        components=ModelComponents(model, device, plan),
        run=run,
        cache=TensorCache(cache_dir),
        processes=processes,
        init_lora=init_lora,
        sample_lora=sample_lora,
        sample_base=sample_base,
        identity=identity,
    )


def _require_format(plan: Plan) -> None:
    """Raise BadInput when the plan's precision needs a package that is not installed."""
    if (made := format_of(plan.precision)) and made.package:
        require_package(made.package, f'precision "{plan.precision}"')


def _planned(plan: Plan, rows: int, params: RequestParams, settings: RunSettings, processes: SingleProcess) -> Planned:
    """Describe the plan, and what the held-out loss of a dataset of `rows` takes. Raises BadInput where nothing would
    be left to train on."""
    held_out = held_out_count(rows, settings.validation_rows)
    cost = measuring_cost(held_out, params, settings, processes.world_size)
    return Planned(line="; ".join(filter(None, [plan.line(), cost])))


def _check_rows(
    request: FineTuneRequest,
    dataset: EditDataset,
    model: EditModel,
    settings: RunSettings,
    processes: SingleProcess,
) -> Generator[Event, None, tuple[EditDataset, EditModel]]:
    """Check rows and samples against the model; return the rows that it takes, and the model with the length of the
    longest caption.

    The main process checks, for all of them. Raises BadInput.
    """
    rules, samples = CaptionRules(model), request.training_params.samples
    if faults := list(check_samples(samples, dataset, rules, settings.control_resolution)):
        raise BadInput("\n".join(faults))
    own = (yield from RowChecks(dataset, rules, settings).check()) if processes.is_main else None
    findings: RowFindings = processes.all_gather_object(own)[0]
    dataset = dataset.without(findings.bad)
    yield from _notices([findings.notice(dataset, model.family)])
    return dataset, replace(model, longest_caption=findings.longest_caption)


def _notices(messages: Iterable[str | None]) -> Iterator[Notice]:
    return (Notice(message=message) for message in messages if message)


def _data_fingerprint(dataset: EditDataset, digests: Path, processes: SingleProcess) -> Generator[Progress, None, str]:
    """Return the dataset's fingerprint. The main process reads the files, for all of them."""
    own = (yield from dataset.compute_fingerprint(digests)) if processes.is_main else ""
    return processes.all_gather_object(own)[0]


def _open_folder(
    opening: Callable[..., tuple[RunFolder, list[str]]],
    run_dir: Path,
    fingerprint: str,
    steps: int,
    processes: SingleProcess,
    held: ExitStack,
) -> Generator[Notice, None, RunFolder]:
    """Return the run folder that the main process has chosen and locked; it alone writes there. Raises BadInput."""
    path, notices, refusal = run_dir, [], None
    if processes.is_main:
        try:
            run, notices = opening(run_dir, fingerprint, steps, held)
            path = run.path
        except BadInput as error:
            refusal = str(error)
    path, notices, refusal = processes.all_gather_object((path, notices, refusal))[0]
    if refusal is not None:
        raise BadInput(refusal)
    yield from _notices(notices)
    run = RunFolder(path, writes=processes.is_main)
    run.adopt(fingerprint)
    return run


def _finished(run: RunFolder, steps: int, processes: SingleProcess) -> Finished | None:
    """Return the end of a run that has all its steps and its weights, as the main process sees it."""
    weights: Path | None = processes.all_gather_object(run.finished_weights(steps))[0]
    if weights is None:
        return None
    return Finished(step=steps, steps=steps, stopped=False, weights=weights, run_dir=run.path, **run.exported_beside())


def _check_settings(
    params: RequestParams, settings: RunSettings, dataset: EditDataset, processes: SingleProcess
) -> None:
    """Raise BadInput for settings that contradict each other, the request or the dataset."""
    check_optimizer(settings)
    if processes.world_size > 1 and not params.use_lora and settings.optimizer != "adamw":
        raise BadInput(f"optimizer: a full fine-tune in several processes needs adamw, not {settings.optimizer}.")
    if settings.mask_column and settings.mask == "difference":
        raise BadInput('mask: "difference" makes masks itself; leave mask_column empty, or choose "column".')
    if settings.mask_column != dataset.columns.mask:
        raise BadInput(
            f'mask_column: is "{settings.mask_column}", but the dataset was opened with '
            f'"{dataset.columns.mask}"; name the same column for both.'
        )
    for name in ("mask_prior", "mask_min"):
        if getattr(settings, name) and not has_masks(settings):
            raise BadInput(f'{name}: needs masks; name a mask_column, or set mask to "difference".')
    if settings.mask_prior and not params.use_lora:
        raise BadInput("mask_prior: keeps what the base draws, which a full fine-tune changes; set it to 0.")
    if settings.sample_ema and not settings.ema_decay:
        raise BadInput("sample_ema: needs averaged weights; set ema_decay, such as to 0.99.")


def arithmetic_of(plan: Plan, device: torch.device) -> dict[str, str]:
    """Describe how a run computes, which decides its rounding: kept with the run, and kept up when it resumes."""
    made = format_of(plan.precision)
    multiplies = made is None or made.runs_on(compute_capability(device))
    return {
        "precision": plan.precision,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "quantize_activations": "on" if plan.quantize_activations and multiplies else "off",
        "compile": "on" if plan.compile else "off",
    }


def resumed_settings(run: RunFolder, settings: RunSettings) -> RunSettings:
    """Replace "auto" by what the run started with, however much memory is free and whatever is fast now."""
    began = run.state()
    names = [name for name in ("precision", "quantize_activations", "compile") if getattr(settings, name) == "auto"]
    return settings.model_copy(update={name: began[name] for name in names if name in began})


def _changed_schedule(run: RunFolder, params: RequestParams, settings: RunSettings) -> str | None:
    """Say that the learning rate jumps because the run was planned for another number of steps; None for no."""
    done, planned = last_step(run.checkpoints), run.planned_steps() or params.steps
    return changed_schedule(done, planned, params.steps, params.learning_rate, settings)


def _changed_arithmetic(began: Mapping[str, str], arithmetic: Mapping[str, str]) -> str | None:
    """Say what a resumed run computes differently from before; None for nothing."""
    changes = [
        f"{name} {began[name]} before, {value} now"
        for name, value in arithmetic.items()
        if began.get(name, value) != value
    ]
    if not changes:
        return None
    return f"On this device the run goes on with other rounding than it began with: {'; '.join(changes)}."
