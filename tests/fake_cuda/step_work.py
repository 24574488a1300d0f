"""Work of a training step's kernels, counted on a fake card, and the seconds that it takes on assumed cards.

Runs the forward and backward pass of two and of three blocks of each class at full width; the difference is a block's
work, times the number of blocks. What is outside the blocks, the optimizer and the modulation, which is computed ahead,
are not counted. Compiled functions count by what they read and write.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from tests.benchmarks.synthetic import random_batches
from trainer.config.settings import RunSettings
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.memory.planner import make_plan
from trainer.modules import blocks_of
from trainer.training.flow_matching import _weight_table
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import build_trainable

from .card import Card, fake_cuda
from .log import Log
from .runs import DEVICE, PARAMS, FakeModel, device_info, fake_model

CARD = Card(memory=39_000_000_000, capability=(8, 9))
"""Large enough for three blocks of which nothing is recomputed; int8 and fp8 products are fast on it."""


KINDS = {
    "quantize": ("_quantize", "_rescale", "_rescale_sum", "_rescale_low_rank", "_quantize_activations"),
    "lora": ("lora",),
    "matmul": ("low precision", "matmul"),
    "attention": ("attention", "attention backward"),
}
"""Names in the table -> kinds of `Traffic`; all others are elementwise."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a card achieves, in TFLOP/s and GB/s: assumed, from measurements that others published."""

    low_precision: float
    matmul: float
    attention: float
    attention_backward: float
    memory: float


CARDS = {
    "4090": Rates(380, 155, 145, 115, 830),
    "3090": Rates(190, 68, 60, 48, 780),
    "H200": Rates(900, 680, 560, 430, 3800),
}


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations, bytes moved and kernels launched, by kind."""

    flops: Counter[str]
    bytes: Counter[str]
    kernels: Counter[str]

    def table(self) -> dict[str, float]:
        """Gigabytes by name in the table, and kernels."""
        named = {kind: name for name, kinds in KINDS.items() for kind in kinds}
        sums: defaultdict[str, float] = defaultdict(float)
        for kind, size in self.bytes.items():
            sums[named.get(kind, "elementwise")] += size / 1e9
        return {**{name: sums[name] for name in ("elementwise", "quantize", "lora")}, "kernels": self.kernels.total()}

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Seconds by name in the table on a card of these rates, one kernel at a time."""
        table, flops = self.table(), self.flops
        return {
            "matmul": flops["low precision"] / rates.low_precision / 1e12 + flops["matmul"] / rates.matmul / 1e12,
            "attention": flops["attention"] / rates.attention / 1e12
            + flops["attention backward"] / rates.attention_backward / 1e12,
            "elementwise": table["elementwise"] / rates.memory,
            "quantize": table["quantize"] / rates.memory,
            "lora": max(table["lora"] / rates.memory, flops["lora"] / rates.matmul / 1e12),
        }


def step_work(which: str, settings: RunSettings, compiler: bool, **layers: int) -> Work:
    """Count the forward and backward pass of a model of that many blocks."""
    model = fake_model(which, None, **layers)
    plan = make_plan(model, PARAMS, settings, device_info(CARD))
    plan = replace(plan, modulation_on_host=True)
    with fake_cuda(CARD, compiler=compiler) as log:
        return _step_work(log, model, plan, settings)


def _step_work(log: Log, model: FakeModel, plan: Plan, settings: RunSettings) -> Work:
    _weight_table.cache_clear()  # a cached tensor belongs to the fake card that it was made on
    components = ModelComponents(model, DEVICE, plan)
    build_trainable(components, PARAMS, settings)
    shape = step_shape(model.family, PARAMS, settings, plan)
    batch = next(random_batches(model.family, model.transformer_config(), shape))
    (batch,) = with_modulation(components, [batch], 1.0)
    before = _counts(log)
    micro_step(components, batch, 1, 1.0)
    return Work(*(after - early for after, early in zip(_counts(log), before, strict=True)))


def _counts(log: Log) -> list[Counter[str]]:
    return [Counter(counts) for counts in (log.traffic.flops, log.traffic.bytes, log.traffic.kernels)]


def full_depth(which: str, settings: RunSettings, compiler: bool) -> Work:
    """Count a step of the whole model from two and three blocks of each class."""
    whole = fake_model(which)
    kinds = Counter(type(block).__name__ for block in blocks_of(whole.empty_transformer()))
    counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for changes in zip(whole.family.few_blocks(2), whole.family.few_blocks(3), strict=True):
        kind = type(blocks_of(fake_model(which, None, **changes[0]).empty_transformer())[0]).__name__
        works = [step_work(which, settings, compiler, **change) for change in changes]
        for total, few, many in zip(counts, *([w.flops, w.bytes, w.kernels] for w in works), strict=True):
            for name in many:
                total[name] += kinds[kind] * (many[name] - few[name])
    return Work(*counts)
