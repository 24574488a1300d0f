"""The training loop: a generator of events, short enough to read in one sitting."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.request import FineTuneRequest
from ..config.settings import RunSettings
from ..distributed.fsdp import full_tensor
from ..distributed.processes import SingleProcess
from ..encoding.cache import TensorCache
from ..errors import BadInput, RunFailed
from ..events import Event, Finished, Notice, Planned, Progress, RunControl, Started, Step
from ..lora.init_lora import check_init_lora, init_lora_fingerprint
from ..memory.estimate import full_fine_tune_need
from ..memory.model_parts import ModelComponents
from ..memory.planner import joint_plan
from ..tensors import DTYPES
from .batch import Batch, idle_batch
from .batch_sampler import Position
from .dataloader import BatchLoader
from .metadata import export_metadata
from .optim import build_optimizer, check_optimizer, learning_rate_at
from .run_folder import RunFolder, open_run_folder, run_fingerprint
from .state import TrainState
from .step import micro_step
from .trainable import build_trainable

if TYPE_CHECKING:
    from ..data.dataset import EditDataset
    from ..models.edit_model import EditModel


OUT_OF_MEMORY = (
    "The device's memory is full. Lower batch_size (and raise gradient_accumulation instead), resolution or the sample "
    "size, set offload to blocks, or close other programs that use the device."
)


def train(
    request: FineTuneRequest,
    dataset: EditDataset,
    model: EditModel,
    settings: RunSettings,
    *,
    run_dir: Path,
    cache_dir: Path | None = None,
    control: RunControl | None = None,
    device: torch.device | None = None,
    processes: SingleProcess | None = None,
) -> Generator[Event, None, None]:
    """Train, and tell of everything that happens.

    Yields at every unit of work; between two units the run can be stopped. Closing the generator cancels: the last
    finished step is saved first. The same request in the same `run_dir` goes on where it stopped; a finished one ends
    at once. `cache_dir` holds latents and text embeddings and may be shared by runs; by default it lies beside the run
    folder. `processes` are those that train together, each calling this; they bring their own control. Raises
    BadInput for what the person can mend, RunFailed when the run cannot go on.
    """
    processes = processes or SingleProcess(control)
    steps = request.training_params.steps
    start = init_lora_fingerprint(request.training_params, settings)
    weights = [*(model.fingerprint(part) for part in ("transformer", "vae", "text")), *start]
    fingerprint = run_fingerprint(request, settings, dataset.fingerprint(), weights, processes.world_size)
    run, elsewhere = open_run_folder(run_dir, fingerprint, steps)
    (path, elsewhere), *_ = processes.all_gather_object((str(run.path), elsewhere))
    run = RunFolder(Path(path), writes=processes.is_main)
    for message in (*model.warnings(), *([elsewhere] if elsewhere else [])):
        yield Notice(message=message)
    finished, *_ = processes.all_gather_object((weights := run.finished_weights(steps)) and str(weights))
    if finished:
        yield Finished(step=steps, steps=steps, stopped=False, weights=Path(finished), run_dir=run.path)
        return
    for note in check_init_lora(model, request.training_params, settings):
        yield Notice(message=note)
    device = device or processes.device()
    check_optimizer(settings)
    if processes.world_size > 1 and not request.training_params.use_lora and settings.optimizer != "adamw":
        raise BadInput(f"optimizer: a full fine-tune by several processes uses adamw, not {settings.optimizer}.")
    if not request.training_params.use_lora and (need := full_fine_tune_need(model, settings, processes.world_size)):
        yield Notice(message=need)
    # What was begun in one precision goes on in it, however much memory is free now.
    held = {"precision": run.state().get("precision", "auto")} if settings.precision == "auto" else {}
    plan = joint_plan(model, request.training_params, settings.model_copy(update=held), processes, device)
    yield Planned(line=plan.line())
    run.begin(request, settings, fingerprint, plan.precision)
    cache = TensorCache(cache_dir or run.path.parent / "edit_trainer_cache")
    components = ModelComponents(model, device, plan)
    training = Training(request, dataset, settings, run, components, cache, processes)
    yield from training.prepare()
    if not processes.shared_control.stopping:
        yield from training.run_steps()
    if processes.shared_control.stopping and training.step < steps:
        processes.barrier()
        yield Finished(step=training.step, steps=steps, stopped=True, weights=None, run_dir=run.path)


class Training:
    """One run while it goes."""

    def __init__(
        self,
        request: FineTuneRequest,
        dataset: EditDataset,
        settings: RunSettings,
        run: RunFolder,
        components: ModelComponents,
        cache: TensorCache,
        processes: SingleProcess,
    ) -> None:
        self.request = request
        self.params = request.training_params
        self.settings = settings
        self.run = run
        self.components = components
        self.processes = processes
        self.control = processes.shared_control
        self.loader = BatchLoader(dataset, self.params, settings, run, components, cache, processes)
        self.state: TrainState | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step if self.state else 0

    # before the first step

    def prepare(self) -> Generator[Event, None, None]:
        """Encode images, samples and (when cached) texts, then load the transformer and the last checkpoint."""
        yield from self.loader.prepare()
        if self.control.stopping:
            return
        yield Progress(phase="loading", done=0, total=1, note="transformer")
        trainable = build_trainable(self.components, self.params, self.settings, self.processes)
        optimizer = build_optimizer(trainable.parameters, self.settings, self.params.learning_rate)
        yield Progress(phase="loading", done=1, total=1, note="transformer")
        seed, keep = self.settings.seed, self.settings.keep_checkpoints
        self.state = TrainState(self.run, self.processes, trainable, optimizer, seed, keep)
        resumed = yield from self.state.restore()
        self.run.cut_log(self.step)
        yield Started(
            run_dir=self.run.path,
            first_step=self.step,
            steps=self.params.steps,
            examples=len(self.loader.examples),
            trainable_parameters=sum(p.numel() for p in trainable.parameters.values()),
            resumed_from=resumed,
        )

    # the steps

    def run_steps(self) -> Generator[Event, None, None]:
        """From the current step to the last. When closed or interrupted on the way, the last finished step is saved."""
        try:
            with closing(self.loader.batches(self.state.position)) as batches:
                if self._sampling_due():
                    yield from self._draw_samples()
                while self.step < self.params.steps and not self.control.stopping:
                    yield from self._one_step(batches)
                    if self._checkpoint_due() or self.control.stopping:
                        yield self.state.save()
                    if self._sampling_due() or self.control.take_sample_request():
                        yield from self._draw_samples()
            if self.step == self.params.steps:
                yield from self._finish()
        except RunFailed as error:
            raise RunFailed(f"{error}\n{self.state.resume_hint()}") from error
        except BaseException as error:
            if self.state.consistent and self.processes.world_size == 1:
                self.state.save()
            if isinstance(error, torch.OutOfMemoryError):
                raise RunFailed(f"{OUT_OF_MEMORY}\n{self.state.resume_hint()}") from error
            raise

    def _one_step(self, batches: Iterator[Batch | Progress]) -> Generator[Event, None, None]:
        begun = time.perf_counter()
        micro: list[Batch] = []
        while len(micro) < self.params.gradient_accumulation:
            item = next(batches)
            if isinstance(item, Progress):
                yield item
            else:
                micro.append(item)
        loss = torch.zeros((), device=self.components.device)
        total = self.params.gradient_accumulation
        for done, batch in enumerate(micro, 1):
            loss += self._forward_backward(batch)
            yield Progress(phase="training", done=self.step * total + done, total=self.params.steps * total)
        rate = learning_rate_at(self.step + 1, self.params.steps, self.params.learning_rate, self.settings)
        loss, grad_norm = self._optimizer_step(loss, rate, micro[-1].next_position)
        entry = {
            "step": self.step,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "seconds": round(time.perf_counter() - begun, 4),
        }
        self.run.append_log({"event": "step", **entry})
        yield Step(steps=self.params.steps, **entry)

    def _forward_backward(self, batch: Batch) -> torch.Tensor:
        """One micro-batch's share of the step's loss. Where weights are shared out, all processes do as many passes."""
        passes = len(batch.texts)
        most = max(self.processes.all_gather_object(passes)) if self.components.plan.sharded else passes
        loss = micro_step(self.components, batch, batch.step_examples, self.settings.training_guidance)
        if passes < most:
            loss += micro_step(self.components, idle_batch(batch, most - passes), 1, self.settings.training_guidance)
        return loss

    def _optimizer_step(self, loss: torch.Tensor, rate: float, next_position: Position) -> tuple[float, float]:
        """Loss and gradient norm of the whole step."""
        parameters = list(self.state.trainable.parameters.values())
        loss = self.processes.reduce_step(loss, parameters)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm or float("inf")))
        optimizer = self.state.optimizer
        if not torch.isfinite(loss + norm):
            optimizer.zero_grad()
            raise RunFailed(
                f"The loss is no longer a finite number at step {self.step + 1} (loss {loss.item()}, gradient norm "
                f"{norm.item()}). Lower learning_rate, or train with precision fp32."
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with self.state.optimizer_step(next_position):
            optimizer.step()
            numbers = loss.item(), norm.item()
        optimizer.zero_grad()
        return numbers

    # once in a while

    def _checkpoint_due(self) -> bool:
        every = self.settings.checkpoint_every or self.params.sample_every
        return self.step % every == 0 or self.step == self.params.steps

    def _sampling_due(self) -> bool:
        if self.step % self.params.sample_every and self.step != self.params.steps:
            return False
        return self.loader.samples.missing(self.step)

    def _draw_samples(self) -> Generator[Event, None, None]:
        if self.processes.world_size > 1 and self.step > self.state.saved_step:
            yield self.state.save()  # launchers kill after a grace period, which drawing may exceed
        with self.state.trainable.exported_values(DTYPES[self.settings.save_dtype]):
            yield from self.loader.samples.draw(self.components, self.step)

    def _finish(self) -> Generator[Event, None, None]:
        yield Progress(phase="saving", done=0, total=1)
        weights = self.run.weights_path(self.step)
        metadata = export_metadata(self.request, self.settings, self.components.model, self.step)
        if self.run.writes or self.state.sharded:
            self.state.trainable.export(weights, DTYPES[self.settings.save_dtype], metadata)
        self.run.finish(self.step, weights)
        self.processes.barrier()
        yield Progress(phase="saving", done=1, total=1)
        yield Finished(step=self.step, steps=self.step, stopped=False, weights=weights, run_dir=self.run.path)
