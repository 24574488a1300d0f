"""Real training steps of a full-size architecture with random weights, on whatever device there is.

Run from the repository's root: python tests/benchmarks/step.py --model qwen --cap-gb 24

Prints the plan, seconds a step, TFLOP/s and what part of the device's own measured rate that is, the peak memory,
allocated and reserved, beside the plan's estimate, and last a row for the table in docs/speed.md. `--cap-gb` plans for,
and on CUDA enforces, a card of that size. `--width`, `--blocks`: a smaller model for a smaller machine. `--profile`: of
one more step, what the device and what the CPU worked on longest. All settings of a run are options as well.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import torch
from torch import nn

from tests.benchmarks.synthetic import RandomModel, random_batches, random_model
from trainer.cli.settings_options import add_settings, read_settings
from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo, default_device, query_device
from trainer.memory.activation_bytes import step_shape
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.memory.planner import make_plan
from trainer.modules import blocks_of
from trainer.training.batch import Batch
from trainer.training.optim import build_optimizer
from trainer.training.step import micro_step, with_modulation
from trainer.training.trainable import build_trainable

NAMES = {"kontext": "black-forest-labs/FLUX.1-Kontext-dev", "qwen": "Qwen/Qwen-Image-Edit"}
ATTENTION_BACKWARD = 2.5
"""Forward passes that an attention's backward pass takes: its five products instead of two."""
AHEAD = 32
"""Steps whose modulation is computed at a time, as in a run."""


@dataclass(frozen=True)
class Work:
    """TFLOP of one forward pass of the blocks."""

    linear: float
    attention: float

    def of_step(self, plan: Plan) -> float:
        """TFLOP of a step that keeps to the plan: forward, again where it is computed again, and backward."""
        share = len(plan.activation_checkpointing)
        again = sum(mode != "none" for mode in plan.activation_checkpointing) / share
        attention_again = sum(mode == "full" for mode in plan.activation_checkpointing) / share
        return self.linear * (2 + again) + self.attention * (1 + ATTENTION_BACKWARD + attention_again)


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = read_settings(options)
    model = make_model(options)
    params = make_params(options)
    device = default_device()
    device_info = capped(query_device(device), device, options.cap_gb)
    plan = make_plan(model, params, settings, device_info)
    print(f"{torch.__version__} on {device_name(device)}; {options.model} {shape_line(model, params, settings, plan)}")
    print(f"plan: {plan.line()}\n      {plan.sum_line()}")
    rate = matmul_rate(device, plan.dtype)
    base = memory_now(device)
    with PeakMemory(device) as peak:
        seconds, ahead, work = run(model, params, settings, plan, device, options)
    done = work.of_step(plan)
    step = statistics.median(seconds)
    spread = f"median of {len(seconds)}, {min(seconds):.3f} to {max(seconds):.3f}"
    print(f"step: {step:.3f} s ({spread}), of which modulation {ahead:.3f}")
    print(f"rate: {done / step:.2f} of {rate:.2f} TFLOP/s, {done / step / rate:.2f}; {done:.2f} TFLOP a step")
    used = peak.bytes - base
    if peak.retries:
        print(f"The allocator was full {peak.retries} times and gave back what it held to go on.")
    reserved = f", {peak.reserved / 1e9:.2f} reserved by the allocator" if peak.reserved else ""
    print(f"peak: {used / 1e9:.2f} GB{reserved}, planned {plan.bytes / 1e9:.2f}, {plan.bytes / used:.2f} of it")
    card = device_name(device) + (f" capped at {options.cap_gb:g} GB" if options.cap_gb else "")
    shape = f"{options.model}, {shape_line(model, params, settings, plan)}"
    memory = f"{used / 1e9:.1f}, {peak.reserved / 1e9:.1f}, {plan.bytes / 1e9:.1f}"
    cells = f"{step:.2f} | {done / step:.0f} | {done / step / rate:.2f} | {memory}"
    print(f"| {card} | {shape} | {plan.line().partition(';')[0]} | {cells} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="kontext")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="Steps that are not timed.")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--width", type=int, default=0, help="Of the transformer, a multiple of 128; 0: as published.")
    parser.add_argument("--blocks", type=int, nargs="*", default=[], help="Kontext: double and single; Qwen: one.")
    parser.add_argument("--cap-gb", type=float, default=0, help="Memory of the card that is planned for.")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    add_settings(parser)
    return parser.parse_args()


def make_model(options: argparse.Namespace) -> RandomModel:
    """The model that the options describe."""
    names = ("num_layers", "num_single_layers") if options.model == "kontext" else ("num_layers",)
    changes = dict(zip(names, options.blocks, strict=False))
    if options.width:
        changes["num_attention_heads"] = options.width // 128
    return random_model(NAMES[options.model], **changes)


def make_params(options: argparse.Namespace) -> TrainingParams:
    """A LoRA of the rank that the options say."""
    columns = {"caption_column": "c", "control_image_column": "b", "image_column": "a"}
    return TrainingParams(batch_size=options.batch_size, lora_rank=options.rank, lora_alpha=options.rank, **columns)


def capped(device_info: DeviceInfo, device: torch.device, gigabytes: float) -> DeviceInfo:
    """The card with no more memory than that; CUDA refuses to give more."""
    if not gigabytes:
        return device_info
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total, torch.cuda.current_device())
    return replace(device_info, free=int(gigabytes * 1e9))


def run(
    model: RandomModel,
    params: TrainingParams,
    settings: RunSettings,
    plan: Plan,
    device: torch.device,
    options: argparse.Namespace,
) -> tuple[list[float], float, Work]:
    """Seconds of each timed step, those of the last one's modulation, and the work of a forward pass."""
    components = ModelComponents(model, device, plan)
    trainable = build_trainable(components, params, settings)
    optimizer = build_optimizer(trainable.parameters, settings, 1e-4)
    shape = step_shape(model.family, params, settings, plan)
    batches = random_batches(model.family, model.transformer_config(), shape)
    seconds: list[float] = []

    def step(batch: Batch) -> float:
        begun = time.perf_counter()
        micro_step(components, batch, params.batch_size, 1.0)
        nn.utils.clip_grad_norm_(list(trainable.parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        return time.perf_counter() - begun

    while len(seconds) < options.steps + options.warmup:
        begun = time.perf_counter()
        block = with_modulation(components, list(islice(batches, AHEAD)), 1.0)
        synchronize(device)
        each = (time.perf_counter() - begun) / len(block)
        for batch in block[: options.steps + options.warmup - len(seconds)]:
            seconds.append(step(batch) + each)
    if options.profile:
        with torch.profiler.profile() as profiler:
            step(block[-1])
        for longest in ("self_device_time_total", "self_cpu_time_total")[device.type == "cpu" :]:
            print(profiler.key_averages().table(sort_by=longest, row_limit=12, max_name_column_width=48))
    return seconds[options.warmup :], each, forward_work(model, block[0])


def forward_work(model: RandomModel, batch: Batch) -> Work:
    """Of the blocks alone, modulation not counted: what is around them is next to nothing."""
    transformer = model.empty_transformer()
    modulation = re.compile(model.family.modulation_layers())
    text = batch.texts[0].text["prompt_embeds"].shape[1]
    images = sum(image.tokens.shape[1] for image in (batch.clean, *batch.controls))
    inside = {module for block in blocks_of(transformer) for module in block.modules()}
    linear = 0
    for name, module in transformer.named_modules():
        if module not in inside or not isinstance(module, nn.Linear) or modulation.fullmatch(name):
            continue
        if any(part in name for part in ("add_", "_context", "txt_")):
            rows = text
        else:
            rows = text + images if name.startswith("single") else images
        linear += 2 * rows * module.in_features * module.out_features
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    attention = 4 * (text + images) ** 2 * width * len(blocks_of(transformer))
    size = batch.clean.tokens.shape[0]
    return Work(size * linear / 1e12, size * attention / 1e12)


def shape_line(model: RandomModel, params: TrainingParams, settings: RunSettings, plan: Plan) -> str:
    """What is trained on, in words."""
    shape = step_shape(model.family, params, settings, plan)
    control = shape.controls[0]
    return (
        f"{shape.target.width} x {shape.target.height} from {control.width} x {control.height}, batch {shape.batch}, "
        f"rank {params.lora_rank}"
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of large square products."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times) / 1e12


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )


def memory_now(device: torch.device) -> int:
    """Bytes that the allocator has given out; on the CPU those of the process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


class PeakMemory:
    """The most that `memory_now` gave inside."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self.reserved = 0
        """The most that CUDA's allocator held, given out or not."""
        self.retries = 0
        """Times that CUDA's allocator was full."""
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            self.reserved = torch.cuda.max_memory_reserved(self.device)
            self.retries = torch.cuda.memory_stats(self.device)["num_alloc_retries"]

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, memory_now(self.device))


if __name__ == "__main__":
    main()
