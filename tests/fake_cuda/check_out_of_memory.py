"""The training loop on a fake card that gives less than was planned for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tests.benchmarks.synthetic import random_batches
from trainer.config.request import parse_request
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo
from trainer.distributed.processes import SingleProcess
from trainer.events import Event, Finished, Notice, Planned, Step
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.planner import make_plan
from trainer.training.batch import Batch
from trainer.training.batch_sampler import Position
from trainer.training.loop import Training
from trainer.training.optim import build_optimizer
from trainer.training.run_folder import RunFolder
from trainer.training.setup import RunContext
from trainer.training.state import TrainState
from trainer.training.trainable import build_trainable

from .card import Card, fake_cuda
from .log import Log
from .runs import DEVICE, NAMES, FakeModel, device_info, fake_model

CARD = Card(memory=24_000_000_000)
SETTINGS = RunSettings(resolution=1024, control_resolution="target", precision="bf16")
STEPS = 2


@dataclass
class Loader:
    """Stands for the run's loader: random micro-batches, no samples, no held-out rows."""

    context: RunContext
    held_out = SimpleNamespace(examples=[])

    @property
    def samples(self) -> Any:
        return SimpleNamespace(missing=lambda step: False)

    def batches(self, position: Position) -> Iterator[Batch]:
        """Yield as many micro-batches as are left."""
        model = self.context.components.model
        shape = step_shape(model.family, self.context.params, SETTINGS, self.context.plan)
        batches = islice(random_batches(model.family, model.transformer_config(), shape), STEPS - position.batch)
        for number, batch in enumerate(batches, position.batch + 1):
            yield replace(batch, next_position=Position(0, number))


class Process(SingleProcess):
    """A process that knows what the fake card computes fast, without timing it."""

    def query_device(self, device: object, sharded: bool = False) -> DeviceInfo:
        return device_info(CARD)


def training(model: FakeModel, folder: Path) -> Training:
    """A run of `STEPS` steps, ready to step, as the whole card allows."""
    columns = {"caption_column": "c", "control_image_column": "b", "image_column": "a"}
    request = parse_request(
        {
            "resource": "pairs.parquet",
            "base_model": NAMES["kontext"],
            "script_type": "image_editing",
            "training_params": columns | {"steps": STEPS, "sample_every": STEPS, "samples": []},
        }
    )
    plan = make_plan(model, request.training_params, SETTINGS, device_info(CARD))
    context = RunContext(
        request=request,
        settings=SETTINGS,
        dataset=cast("Any", None),
        components=ModelComponents(model, DEVICE, plan),
        run=RunFolder(folder, writes=False),
        cache=cast("Any", None),
        processes=Process(),
        init_lora=None,
        sample_lora=None,
        sample_base=None,
        identity={"fingerprint": "none"},
    )
    trainable = build_trainable(context.components, context.params, SETTINGS)
    optimizer = build_optimizer(trainable.parameters, SETTINGS, 1e-4)
    return Training(context, cast("Any", Loader(context)), TrainState(context, trainable, optimizer))


def run(log: Log, folder: Path, limit: float) -> tuple[list[Event], Training]:
    """Train with that share of what was planned."""
    trained = training(fake_model("kontext", num_layers=1, num_single_layers=3), folder)
    log.limit = int(limit * trained.context.plan.bytes)
    return list(trained.run_steps()), trained


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_step_out_of_memory_is_planned_again_within_what_the_card_gives(tmp_path: Path) -> None:
    with fake_cuda(CARD) as log:
        events, trained = run(log, tmp_path, 0.8)
        assert isinstance(events[-1], Finished)
        assert [event.step for event in of(Step, events)] == [1, 2]
        assert len(of(Notice, events)) == len(of(Planned, events)) == 1
        assert log.limit is not None
        assert trained.context.plan.bytes <= 0.93 * log.limit
        assert "checkpointed" in of(Planned, events)[0].line
        del trained
