"""The training loop: a generator of events, short enough to read in one sitting."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .batches import MicroBatch, Position, micro_batches
from .cache import TensorCache
from .card import card_of
from .checkpoint import TrainingState, checkpoint_folders, load_checkpoint, save_checkpoint
from .encode import Encoder, Example, Texts
from .errors import RunFailed
from .events import Checkpoint, Event, Finished, Planned, Progress, RunControl, Started, Step, Warning
from .files import remove
from .init_lora import check_init_lora, init_lora_fingerprint
from .memory import Parts, default_device, full_fine_tune_need
from .metadata import export_metadata
from .optim import build_optimizer, check_optimizer, learning_rate_at, load_optimizer_tensors, optimizer_tensors
from .planning import make_plan
from .prefetch import prefetched
from .runs import RunFolder, open_run_folder, run_fingerprint
from .samples import Samples
from .schema import FineTuneRequest
from .settings import RunSettings
from .step import Batch, collate, micro_step, with_modulation
from .trainee import build_trainee
from .weights import DTYPES, copy_values

if TYPE_CHECKING:
    from .dataset import EditDataset
    from .models.sources import EditModel

TEXT_BLOCK = 128
"""Examples whose texts are encoded at a time when text embeddings are not cached."""
MODULATION_BLOCK = 32
"""Examples that the modulation is computed ahead for at a time, when its weights stay in host memory."""
OUT_OF_MEMORY = (
    "The device's memory is full. Lower batch_size (and raise gradient_accumulation instead), resolution or the sample "
    "size, set gradient_checkpointing to on and offload to phases, or close other programs that use the device. The "
    "last finished step is saved; the same request goes on from there."
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
) -> Generator[Event, None, None]:
    """Train, and tell of everything that happens.

    Yields at every unit of work; between two units the run can be stopped. Closing the generator cancels: the last
    finished step is saved first. The same request in the same `run_dir` goes on where it stopped; a finished one ends
    at once. `cache_dir` holds latents and text embeddings and may be shared by runs; by default it lies beside the run
    folder. Raises BadInput for what the person can mend, RunFailed when the run cannot go on.
    """
    control = control or RunControl()
    steps = request.training_params.steps
    start = init_lora_fingerprint(request.training_params, settings)
    weights = [*(model.fingerprint(part) for part in ("transformer", "vae", "text")), *start]
    fingerprint = run_fingerprint(request, settings, dataset.fingerprint(), weights)
    run, elsewhere = open_run_folder(run_dir, fingerprint, steps)
    for message in (*model.doubts(), *([elsewhere] if elsewhere else [])):
        yield Warning(message=message)
    if weights := run.finished_weights(steps):
        yield Finished(step=steps, steps=steps, stopped=False, weights=weights, run_dir=run.path)
        return
    for note in check_init_lora(model, request.training_params, settings):
        yield Warning(message=note)
    device = device or default_device()
    check_optimizer(settings)
    if not request.training_params.use_lora and (need := full_fine_tune_need(model.transformer_parameters(), device)):
        yield Warning(message=need)
    plan = make_plan(model, request.training_params, settings, card_of(device))
    yield Planned(line=plan.line())
    run.begin(request, settings, fingerprint)
    cache = TensorCache(cache_dir or run.path.parent / "edit_trainer_cache")
    parts = Parts(model, device, plan)
    training = Training(request, dataset, settings, run, parts, cache, control)
    yield from training.prepare()
    if not control.stopping:
        yield from training.run_steps()
    if control.stopping and training.step < steps:
        yield Finished(step=training.step, steps=steps, stopped=True, weights=None, run_dir=run.path)


class Training:
    """One run while it goes."""

    def __init__(
        self,
        request: FineTuneRequest,
        dataset: EditDataset,
        settings: RunSettings,
        run: RunFolder,
        parts: Parts,
        cache: TensorCache,
        control: RunControl,
    ) -> None:
        self.request = request
        self.params = request.training_params
        self.dataset = dataset
        self.settings = settings
        self.run = run
        self.parts = parts
        self.control = control
        self.family = parts.model.family
        self.encoder = Encoder(parts, cache, settings)
        self.texts = Texts(self.encoder, dataset, on_disk=self.params.cache_text_embeddings)
        self.samples = Samples(run, self.params, self.encoder)
        self.examples: list[Example] = []
        self.step = 0
        self.saved_step = 0
        self.position = Position(0, 0)
        self._updating = False

    # before the first step

    def prepare(self) -> Generator[Event, None, None]:
        """Encode images, samples and (when cached) texts, then load the transformer and the last checkpoint."""
        self.examples = yield from self.encoder.examples(self.dataset, self.control)
        yield from self._warn_of_small_targets()
        yield from self.samples.prepare(self.dataset, self.texts, self.control)
        if self.texts.on_disk:
            yield from self.texts.encode(chain.from_iterable(map(self._captions, self.examples)), self.control)
            self.parts.drop("text_encoder")
        self.parts.drop("codec")
        if self.control.stopping:
            return
        yield Progress(phase="loading", done=0, total=1, note="transformer")
        self.trainee = build_trainee(self.parts, self.params, self.settings)
        self.optimizer = build_optimizer(self.trainee.parameters, self.settings, self.params.learning_rate)
        yield Progress(phase="loading", done=1, total=1, note="transformer")
        resumed = yield from self._resume()
        self.run.cut_log(self.step)
        yield Started(
            run_dir=self.run.path,
            first_step=self.step,
            steps=self.params.steps,
            examples=len(self.examples),
            trainable_parameters=sum(p.numel() for p in self.trainee.parameters.values()),
            resumed_from=resumed,
        )

    def _captions(self, example: Example) -> list[tuple[Example, str]]:
        """The captions that an example may be trained with."""
        return [(example, example.caption)] + ([(example, "")] if self.settings.caption_dropout else [])

    def _warn_of_small_targets(self) -> Iterator[Warning]:
        small = sum(
            1
            for example in self.examples
            if example.target_size.width * example.target_size.height
            < 0.9 * example.controls[0].size.width * example.controls[0].size.height
        )
        if small:
            yield Warning(
                message=f"{small} of {len(self.examples)} targets are trained at a smaller size than their control "
                "image gets in inference. Raise resolution, or set control_resolution to target."
            )

    def _resume(self) -> Generator[Warning, None, Path | None]:
        for path in reversed(checkpoint_folders(self.run.checkpoints)):
            state = load_checkpoint(path)
            if state is None:
                remove(path)
                yield Warning(message=f"The checkpoint {path.name} is damaged and was removed; an older one is taken.")
                continue
            copy_values(self.trainee.parameters, state.weights)
            load_optimizer_tensors(self.optimizer, self.trainee.parameters, state.optimizer)
            self.step = self.saved_step = state.step
            self.position = state.position
            return path
        return None

    # the steps

    def run_steps(self) -> Generator[Event, None, None]:
        """From the current step to the last. When closed or interrupted on the way, the last finished step is saved."""
        try:
            with closing(self._batches()) as batches:
                if self._sampling_due():
                    yield from self._draw_samples()
                while self.step < self.params.steps and not self.control.stopping:
                    yield from self._one_step(batches)
                    if self._checkpoint_due() or self.control.stopping:
                        yield self._checkpoint()
                    if self._sampling_due() or self.control.take_sample_request():
                        yield from self._draw_samples()
            if self.step == self.params.steps:
                yield from self._finish()
        except RunFailed as error:
            raise RunFailed(f"{error}\n{self._how_to_go_on()}") from error
        except BaseException as error:
            if not self._updating:
                self._checkpoint()
            if isinstance(error, torch.OutOfMemoryError):
                raise RunFailed(OUT_OF_MEMORY) from error
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
        count = sum(len(batch.examples) for batch in micro)
        loss = torch.zeros((), device=self.parts.device)
        total = self.params.gradient_accumulation
        for done, batch in enumerate(micro, 1):
            loss += micro_step(self.parts, batch, count, self.settings.training_guidance)
            yield Progress(phase="training", done=self.step * total + done, total=self.params.steps * total)
        rate = learning_rate_at(self.step + 1, self.params.steps, self.params.learning_rate, self.settings)
        grad_norm = self._optimizer_step(loss, rate)
        self.position, self.step = micro[-1].following, self.step + 1
        entry = {
            "step": self.step,
            "loss": loss.item(),
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "seconds": round(time.perf_counter() - begun, 4),
        }
        self.run.append_log({"event": "step", **entry})
        yield Step(steps=self.params.steps, **entry)

    def _optimizer_step(self, loss: torch.Tensor, rate: float) -> float:
        parameters = list(self.trainee.parameters.values())
        limit = self.settings.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(loss + norm):
            self.optimizer.zero_grad()
            raise RunFailed(
                f"The loss is no longer a finite number at step {self.step + 1} (loss {loss.item()}, gradient norm "
                f"{norm.item()}). Lower learning_rate, or train with precision fp32."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._updating = True
        self.optimizer.step()
        self._updating = False
        self.optimizer.zero_grad()
        return norm.item()

    def _batches(self) -> Iterator[Batch | Progress]:
        """Micro-batches ready to train on, loaded ahead by a thread; Progress while texts are encoded in blocks."""
        stream = micro_batches(self.examples, self.settings.seed, self.params.batch_size, self.position)
        if self.texts.on_disk:
            yield from self._loaded(stream)
        while True:
            block = list(islice(stream, max(1, TEXT_BLOCK // self.params.batch_size)))
            examples = chain.from_iterable(batch.examples for batch in block)
            yield from self.texts.encode(chain.from_iterable(map(self._captions, examples)), self.control)
            yield from self._loaded(block)

    def _loaded(self, stream: Iterable[MicroBatch]) -> Iterator[Batch]:
        if not self.parts.plan.modulation_on_host:
            yield from prefetched(stream, self._collate)
            return
        count = max(1, MODULATION_BLOCK // self.params.batch_size)
        with closing(prefetched(stream, self._collate, ahead=count)) as batches:
            while block := list(islice(batches, count)):
                yield from with_modulation(self.parts, block, self.settings.training_guidance)

    def _collate(self, batch: MicroBatch) -> Batch:
        return collate(batch, self.encoder, self.texts, self.params.timestep_type, self.settings)

    # once in a while

    def _checkpoint_due(self) -> bool:
        every = self.settings.checkpoint_every or self.params.sample_every
        return self.step % every == 0 or self.step == self.params.steps

    def _checkpoint(self) -> Checkpoint:
        """Save the current step, unless it is saved already or nothing is trained yet."""
        path = self.run.checkpoints / f"step-{self.step:06d}"
        if self.step > self.saved_step:
            state = TrainingState(
                step=self.step,
                position=self.position,
                seed=self.settings.seed,
                weights=self.trainee.parameters,
                optimizer=optimizer_tensors(self.optimizer, self.trainee.parameters),
            )
            path = save_checkpoint(self.run.checkpoints, state, self.settings.keep_checkpoints)
            self.saved_step = self.step
        return Checkpoint(step=self.step, path=path)

    def _how_to_go_on(self) -> str:
        last = checkpoint_folders(self.run.checkpoints)
        if not last:
            return "No step was saved yet."
        return f"The last good checkpoint is {last[-1]}; the same request goes on from there."

    def _sampling_due(self) -> bool:
        if self.step % self.params.sample_every and self.step != self.params.steps:
            return False
        return self.samples.missing(self.step)

    def _draw_samples(self) -> Generator[Event, None, None]:
        with self.trainee.exported_values(DTYPES[self.settings.save_dtype]):
            yield from self.samples.draw(self.parts, self.step)

    def _finish(self) -> Generator[Event, None, None]:
        yield Progress(phase="saving", done=0, total=1)
        weights = self.run.weights_path(self.step)
        metadata = export_metadata(self.request, self.settings, self.parts.model, self.step)
        self.trainee.export(weights, DTYPES[self.settings.save_dtype], metadata)
        self.run.finish(self.step, weights)
        yield Progress(phase="saving", done=1, total=1)
        yield Finished(step=self.step, steps=self.step, stopped=False, weights=weights, run_dir=self.run.path)
